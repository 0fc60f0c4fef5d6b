"""`chestx benchmark`: every variant under every runtime, ratios to both baselines, and their description."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from chestx_cli.core.errors import ChestxError
from chestx_cli.core.record import Stamp
from chestx_cli.inference import timing
from chestx_cli.inference.device import chestx_bundle
from chestx_cli.inference.file_sizes import file_sizes, sparse_bytes
from chestx_cli.inference.runtimes import NATIVE, RUNTIMES, Model, chosen_runtimes
from chestx_cli.inference.speedups import best_runtime, noise, recommendation, speed_row, speed_sentence
from chestx_cli.inference.timing import Job, Round, time_jobs
from chestx_cli.records.benchmark import BenchmarkRecord, CostRow
from conftest import MOST_WAITED, Chestx

QUICK = ("--rounds", 1, "--duration", 0.01, "--threads", 1)


def test_every_variant_runs_under_every_usual_runtime_that_can(finished: Path) -> None:
    for folder in sorted((finished / "variants").iterdir()):
        record = json.loads((folder / "benchmark.cpu.json").read_text())
        kind = json.loads((folder / "variant.json").read_text())["kind"]
        expected = [name for name in chosen_runtimes(()) if kind in RUNTIMES[name].kinds]
        assert [row["runtime"] for row in record["rows"]] == expected
        assert [row["runtime"] for row in record["cost_rows"]] == expected
        for row in record["rows"]:
            assert 0 < row["latency_p50_ms"] <= row["latency_p90_ms"] <= row["latency_p99_ms"]
            assert [found["batch_size"] for found in row["batches"]] == record["batch_sizes"] == [1, 16]
            assert row["batches"][0]["p50_ms"] == row["latency_p50_ms"]
            assert all(rate > 0 for rate in row["images_per_s"])
        for row in record["cost_rows"]:
            assert 0 < row["added_memory_mb"] < row["peak_memory_mb"]
            assert row["macs"] > 0
            assert row["model_bytes"] == next(folder.glob("model.*")).stat().st_size


def test_zeros_count_only_where_they_are_left_out(finished: Path) -> None:
    def costs(name: str) -> dict[str, float]:
        row: dict[str, float] = json.loads((finished / "variants" / name / "benchmark.cpu.json").read_text())
        return row["cost_rows"][0]  # type: ignore[index,no-any-return]

    dense, pruned = costs("baseline"), costs("oneshot-50")
    assert pruned["model_bytes"] == pytest.approx(dense["model_bytes"], rel=0.02)
    assert pruned["sparse_bytes"] < 0.9 * pruned["model_bytes"]
    assert dense["sparse_bytes"] > 0.95 * dense["model_bytes"]


def test_ratios_are_against_the_baseline_of_the_same_run(chestx: Chestx, study: Path) -> None:
    words = ("--runtimes", "onnxruntime,pytorch", "--batch-sizes", "4,1,2", *QUICK)
    record = chestx("benchmark", "oneshot-50", "--study", study, *words, "--json").json()
    assert (record["threads"], record["rounds"], record["batch_sizes"]) == (1, 1, [1, 2, 4])
    rows = {(row["variant"], row["runtime"]): row for row in record["rows"]}
    assert rows["baseline", "pytorch"]["speedup_over_eager"] == pytest.approx(1.0)
    assert rows["baseline", record["best_fp32_runtime"]]["speedup_over_best_fp32"] == pytest.approx(1.0)
    assert set(rows) == {
        (name, runtime) for name in ("baseline", "oneshot-50") for runtime in ("onnxruntime", "pytorch")
    }
    # One round has no interval, so that nothing may be called faster, and nothing recommended.
    assert any("oneshot-50: not enough rounds to say whether it is faster than" in note for note in record["notes"])
    assert any("No recommendation for speed on cpu" in note for note in record["notes"])
    assert not any("is due to compression" in note or "Recommended" in note for note in record["notes"])


def test_a_model_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    job = Job(
        model=Model(path=str(tmp_path / "m.onnx"), kind="onnx", backbone="tiny", n_classes=2),
        runtime=NATIVE["onnx"],
        device="cpu",
        threads=1,
        image_size_px=32,
        batch_sizes=(1,),
        duration_s=0.01,
        seed=0,
    )
    with pytest.raises(ChestxError, match=r"cannot be timed under onnxruntime: .*not an ONNX model"):
        time_jobs([job], 1, lambda: None)


def test_each_round_has_a_process_of_its_own_and_turns_go_forth_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = []

    def pretend(job: Job) -> Round:
        turns.append(job.runtime)
        return Round(seconds={1: (0.01,)})

    monkeypatch.setattr("chestx_cli.inference.timing.time_round", pretend)
    model = Model(path="m", kind="onnx", backbone="tiny", n_classes=2)
    first = Job(
        model=model, runtime="a", device="cpu", threads=1, image_size_px=32, batch_sizes=(1,), duration_s=1, seed=0
    )
    found = time_jobs([first, dataclasses.replace(first, runtime="b")], 3, lambda: None)
    assert turns == ["a", "b", "b", "a", "a", "b"]
    assert [len(rounds) for rounds in found] == [3, 3]


@pytest.mark.parametrize("on_the_device", [False, True])
@pytest.mark.parametrize(("call_s", "duration_s", "warming"), [(0.05, 1, 5), (0.2, 1, 3), (0.6, 1, 1), (0.05, 0, 1)])
def test_warm_up_is_five_calls_or_half_of_the_time_and_never_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call_s: float, duration_s: float, warming: int, on_the_device: bool
) -> None:
    now_s = [0.0]

    def compute(inputs: np.ndarray) -> np.ndarray:
        now_s.append(now_s[-1] + call_s)
        return inputs

    module = chestx_bundle if on_the_device else timing
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now_s[-1]))
    if on_the_device:
        described = {"model": {"file": "m", "sha256": ""}, "preprocessing": {"image_size_px": 4}}
        monkeypatch.setattr(chestx_bundle, "refuse_emulation", lambda: None)
        monkeypatch.setattr(chestx_bundle, "read_description", lambda _: described)
        monkeypatch.setattr(chestx_bundle, "checked_model", lambda *_: tmp_path / "m")
        monkeypatch.setattr(chestx_bundle, "open_model", lambda *_: compute)
        found = chestx_bundle.time_round(tmp_path, threads=1, batch_sizes=[1], duration_s=duration_s, seed=0)
        timed = found["seconds"]["1"]
    else:
        monkeypatch.setattr(timing, "RUNTIMES", {"fake": SimpleNamespace(load=lambda: None, open=lambda *_: compute)})
        model = Model(path="m", kind="onnx", backbone="tiny", n_classes=2)
        job = Job(
            model=model,
            runtime="fake",
            device="cpu",
            threads=1,
            image_size_px=4,
            batch_sizes=(1,),
            duration_s=duration_s,
            seed=0,
        )
        timed = list(timing.measure(job).seconds[1])
    assert len(now_s) - 1 - len(timed) == warming


def test_torch_compile_runs_where_there_is_a_compiler_and_is_left_out_loudly_elsewhere(
    chestx: Chestx, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A cache of its own, so that what was compiled before does not hide that there is no compiler.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    words = ("benchmark", "baseline", "--study", study, "--batch-sizes", "1", *QUICK)
    outcome = chestx(*words, "--runtimes", "torch.compile,onnxruntime", "--json")
    assert outcome.code == 0, outcome.err
    record = outcome.json()
    assert [row["runtime"] for row in record["rows"]] == ["onnxruntime"]
    (said,) = [text for text in record["warnings"] if "torch.compile" in text]
    assert "torch.compile is left out for baseline" in said
    assert "compiler" in said
    assert "torch.compile is left out for baseline" in outcome.err
    monkeypatch.delenv("CXX")
    record = chestx(*words, "--runtimes", "torch.compile", "--json").json()
    assert [row["runtime"] for row in record["rows"]] == ["torch.compile"]
    assert record["best_fp32_runtime"] == "torch.compile"
    assert list((tmp_path / "inductor").rglob("*.so"))


def test_a_runtime_that_is_not_installed_names_its_extra(
    chestx: Chestx, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = dataclasses.replace(RUNTIMES["openvino"], package="no_such_package")
    monkeypatch.setitem(RUNTIMES._entries, "openvino", missing)
    assert "openvino" not in chosen_runtimes(())
    outcome = chestx("benchmark", "--study", study, "--runtimes", "openvino")
    assert outcome.code == 2
    assert "chestx-cli[openvino]" in outcome.err
    assert chestx("benchmark", "--study", study, "--runtimes", "abacus").code == 2


def test_openvino_computes_what_onnx_runtime_does_and_reports_to_nobody(finished: Path) -> None:
    pytest.importorskip("openvino", exc_type=ImportError)
    for path in sorted(finished.glob("variants/*/model.onnx")):
        model = Model(path=str(path), kind="onnx", backbone="tiny", n_classes=2)
        inputs = np.random.default_rng(0).standard_normal((3, 3, 32, 32), dtype=np.float32)
        own, other = (RUNTIMES[name].open(model, 1, "cpu")(inputs) for name in ("openvino", "onnxruntime"))
        assert np.abs(own - other).max() < 0.05 * np.abs(other).max()


def test_cuda_without_a_gpu_is_a_usage_error(chestx: Chestx, study: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    outcome = chestx("benchmark", "--study", study, "--device", "cuda")
    assert outcome.code == 2
    assert "--device cpu" in outcome.err


def test_times_that_scatter_are_called_noisy() -> None:
    quiet = Round(seconds={1: (0.01, 0.011), 16: (0.1, 0.1)})
    busy = Round(seconds={1: (0.5, 0.5), 16: (0.1, 0.1)})
    assert noise({("baseline", "pytorch"): [quiet, quiet]}) == ()
    said = noise({("baseline", "pytorch"): [quiet, busy, busy]})
    assert "NOISY: the rounds of baseline under pytorch differ by a factor of 4" in said[0]
    assert "a batch of 1 took longer than one of 16" in said[1]
    assert "One round only" in noise({("baseline", "pytorch"): [quiet]})[0]


def test_times_of_models_that_wait_for_a_processor_are_called_noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MOST_WAITED", MOST_WAITED)
    idle, busy = (Round(seconds={1: (0.01,) * 3}, waited_share=share) for share in (0.01, 0.4))
    unknown = dataclasses.replace(idle, waited_share=None)
    assert noise({("a", "pytorch"): [idle, idle, busy], ("b", "pytorch"): [unknown] * 3}) == ()
    said = noise({("a", "pytorch"): [idle] * 3, ("b", "onnxruntime"): [busy, idle, busy]})
    assert said[0].startswith("NOISY: b under onnxruntime waited 40% of its time for a processor. The machine was busy")
    assert [timing.roughness_of([one] * 3) > 1 for one in (idle, busy, unknown)] == [False, True, False]
    row = speed_row(("b", "onnxruntime"), {("b", "onnxruntime"): [busy, idle, busy]}, "b", "onnxruntime", "0" * 64)
    assert row.waited_share == pytest.approx(0.4)


def made_up(**rounds_ms: Sequence[float]) -> BenchmarkRecord:
    """Return a benchmark of variants with these latencies round by round; `variant__runtime` names what was timed."""
    timed = {}
    for name, values in rounds_ms.items():
        variant, _, runtime = name.partition("__")
        timed[variant, runtime or "onnxruntime"] = [
            Round(seconds={1: (value / 1000,) * 3, 16: (value / 100,) * 3}) for value in values
        ]
    best = best_runtime(timed, "baseline", 1)
    return BenchmarkRecord(
        stamp=Stamp(command="", options={}, inputs={}, environment={}, created="", duration_s=0),
        device="cpu",
        machine="made up",
        threads=1,
        rounds=5,
        batch_sizes=(1, 16),
        baseline="baseline",
        best_fp32_runtime=best,
        rows=tuple(speed_row(key, timed, "baseline", best, "0") for key in timed),
        cost_rows=(),
    )


def test_noisy_rounds_do_not_say_what_is_faster() -> None:
    record = made_up(baseline=[10.0] * 5, fast=[1.0] * 5, slow=[30.0] * 5)
    noisy = record.replace(warnings=("NOISY: the rounds differ.",))
    for name, word in (("fast", "faster"), ("slow", "slower")):
        assert f"{name} is {word} than" in speed_sentence(record, name)
        assert f"{name}: too NOISY to say whether it is faster than" in speed_sentence(noisy, name)


STEADY = (20.0, 20.2, 19.9, 20.1, 20.0)


def test_a_sentence_says_faster_with_the_interval_and_both_runtimes() -> None:
    found = made_up(
        baseline=STEADY, baseline__pytorch=[40] * 5, small=[10, 10.1, 9.9, 10, 10.05], small__pytorch=STEADY
    )
    assert speed_sentence(found, "baseline") == ""
    said = speed_sentence(found, "small")
    assert said.startswith(
        "small is faster than the FP32 baseline on cpu (both under ONNX Runtime, the best for each): "
    )
    assert "10.0 ms, 2.00 times as fast (95 % 1.99–2.01)" in said
    other = made_up(baseline=STEADY, small__openvino=[10, 10.1, 9.9, 10, 10.05])
    assert "(OpenVINO against ONNX Runtime, the best for each)" in speed_sentence(other, "small")
    assert "Recommended for speed on cpu: small under OpenVINO" in recommendation((other,), (), {})[0]


def test_one_noisy_run_among_several_recommends_nothing() -> None:
    quiet = made_up(baseline=STEADY, small=[10, 10.1, 9.9, 10, 10.05])
    busy = made_up(baseline=STEADY, other=[5, 5.1, 4.9, 5, 5.05]).replace(warnings=("NOISY: the rounds differ.",))
    assert "Recommended for speed" in recommendation((quiet,), (), {})[0]
    for parts in ((quiet, busy), (busy, quiet)):
        assert recommendation(parts, (), {}) == ("No recommendation for speed on cpu: the times are NOISY.",)


def test_within_five_percent_is_not_faster_and_scattering_over_one_is_undecided() -> None:
    same = made_up(baseline=STEADY, other=[19.3, 19.4, 19.2, 19.3, 19.4])
    assert "other is not faster than the FP32 baseline" in speed_sentence(same, "other")
    scattered = made_up(baseline=STEADY, other=[10, 30, 12, 25, 11])
    assert "other: not enough rounds to say whether it is faster than the FP32" in speed_sentence(scattered, "other")
    assert speed_sentence(scattered, "other").endswith("the ratio varies across 1 from round to round.")
    (said,) = recommendation((scattered,), {"other"}, {})
    assert said == "No recommendation for speed on cpu: not enough rounds to say for other. Use more --rounds."
    # Where the measured direction is the baseline's, naming it contradicts nothing.
    slow = made_up(baseline=STEADY, other=[60, 15, 50, 18, 55])
    assert "2.51 times the latency (95 % " in speed_sentence(slow, "other")
    assert "the FP32 baseline itself" in recommendation((slow,), (), {})[0]


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("own_ms", [1.1, 20.0, 90.0])
def test_fewer_than_three_rounds_decide_and_recommend_nothing(rounds: int, own_ms: float) -> None:
    found = made_up(baseline=STEADY[:rounds], small=[own_ms] * rounds)
    said = speed_sentence(found, "small")
    assert said.startswith("small: not enough rounds to say whether it is faster than the FP32 baseline on cpu")
    assert "(an interval needs 3 rounds)" in said
    (advice,) = recommendation((found,), (), {})
    assert advice.startswith("No recommendation for speed on cpu")
    decided = made_up(baseline=STEADY, small=[own_ms] * 5, unsure=[15, 25, 12, 30, 14])
    assert ("small under" in recommendation((decided,), (), {})[0]) == (own_ms < 19)


def stored_parts(run: int, size_bytes: dict[str, int], **rounds_ms: Sequence[float]) -> list[BenchmarkRecord]:
    """Return what one run of the command stores with each variant."""
    made = made_up(**rounds_ms)
    costs = tuple(
        CostRow(
            variant=variant,
            runtime="onnxruntime",
            peak_memory_mb=None,
            added_memory_mb=None,
            size_mb=size / 1e6,
            gzip_mb=size / 1e6,
            sparse_mb=size / 1e6,
            parameters=1,
            nonzero_parameters=1,
            gmacs=1.0,
            macs=1,
            model_bytes=size,
            gzip_bytes=size,
            sparse_bytes=size,
            model_sha256="",
        )
        for variant, size in size_bytes.items()
    )
    stamp = dataclasses.replace(made.stamp, created=f"run {run}")
    return [dataclasses.replace(made, cost_rows=costs, stamp=stamp).of(variant) for variant in size_bytes]


def test_of_stored_runs_the_smallest_of_the_fastest_is_recommended_within_one_run() -> None:
    sizes = {"baseline": 100, "large": 50, "small": 10}
    fast = [10, 10.1, 9.9, 10, 10.05]
    first = stored_parts(1, sizes, baseline=STEADY, large=fast, small=[10.1, 10.2, 10, 10.1, 10.15])
    assert recommendation(first, (), {})[0].startswith("Recommended for speed on cpu: small under")
    # Of another run with fewer rounds, a smaller variant can be faster, but rounds cannot be compared.
    other = stored_parts(2, {"baseline": 100, "tiny": 1}, baseline=STEADY[:3], tiny=[10.3, 10.2, 10.3])[1:]
    assert recommendation(first + other, (), {})[0].startswith("Recommended for speed on cpu: small under")
    fastest = stored_parts(2, {"baseline": 100, "tiny": 1}, baseline=STEADY[:3], tiny=[5, 5.1, 5])[1:]
    assert recommendation(first + fastest, (), {})[0].startswith("Recommended for speed on cpu: tiny under")


def test_an_int8_file_that_is_slower_is_never_recommended() -> None:
    slower = [30.0, 30.2, 29.9, 30.1, 30.0]
    found = made_up(baseline=STEADY, small=[15.0, 15.1, 15.0, 15.2, 14.9], int8=slower, fp32=slower)
    assert "int8 is slower than the FP32 baseline" in speed_sentence(found, "int8")
    assert "1.50 times the latency (95 % 1.50–1.50)" in speed_sentence(found, "int8")
    assert recommendation((found,), {"int8"}, {}) == (
        "Recommended for speed on cpu: small under ONNX Runtime. It is not compared on the test images: run "
        '"chestx evaluate small".',
        "int8 is an INT8 file that is slower than FP32 here: it is not recommended.",
    )
    alone = recommendation((made_up(baseline=STEADY, int8=slower),), {"int8"}, {})
    assert "the FP32 baseline itself" in alone[0]
    assert "int8 is an INT8 file that is slower" in alone[1]


def test_processes_that_differ_widen_the_interval() -> None:
    """The same graph twice, each process at its own speed: neither is called faster."""
    found = made_up(baseline=[20, 22, 21, 20, 23], again=[22, 21, 23, 22, 21.5])
    assert speed_sentence(found, "again").startswith("again: not enough rounds to say whether it is faster")


def test_sparse_size_is_a_bitmap_and_the_values_that_are_not_zero(tmp_path: Path) -> None:
    values = np.zeros(1000, dtype=np.float32)
    values[:100] = 1.0
    path = tmp_path / "model.safetensors"
    save_file({"half": values, "full": np.ones(10, dtype=np.float32)}, path)
    # 125 bytes of bitmap and 100 values of 4 bytes instead of 4,000 bytes; the full tensor stays as it is.
    assert sparse_bytes(path) == path.stat().st_size - 4000 + 125 + 400
    sizes = file_sizes(path, "0" * 64, tmp_path)
    assert sizes.gzip_bytes == pytest.approx(len(gzip.compress(path.read_bytes(), 6)), abs=20)
    path.unlink()
    assert file_sizes(path, "0" * 64, tmp_path) == sizes
