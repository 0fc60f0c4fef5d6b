"""`chestx benchmark`: every variant under every runtime, and ratios against both baselines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chestx_cli.errors import ChestxError
from chestx_cli.runtimes import NATIVE, RUNTIMES, Model
from chestx_cli.stages.benchmark import _noise
from chestx_cli.timing import Job, Round, time_jobs
from conftest import Chestx


def test_every_variant_runs_under_every_runtime_that_can(finished: Path) -> None:
    for folder in sorted((finished / "variants").iterdir()):
        record = json.loads((folder / "benchmark.cpu.json").read_text())
        kind = json.loads((folder / "variant.json").read_text())["kind"]
        expected = [name for name, runtime in RUNTIMES.items() if kind in runtime.kinds]
        assert [row["runtime"] for row in record["rows"]] == expected
        for row in record["rows"]:
            assert 0 < row["latency_p50_ms"] <= row["latency_p90_ms"] <= row["latency_p99_ms"]
            assert row["throughput_images_per_s"] > 0
            assert row["macs"] > 0
            assert row["model_bytes"] == next(folder.glob("model.*")).stat().st_size


def test_ratios_are_against_the_baseline_of_the_same_run(chestx: Chestx, study: Path) -> None:
    words = ("--rounds", 2, "--duration", 0.02, "--threads", 1, "--json")
    record = chestx("benchmark", "oneshot-50", "--study", study, *words).json()
    assert (record["threads"], record["rounds"]) == (1, 2)
    rows = {(row["variant"], row["runtime"]): row for row in record["rows"]}
    assert rows["baseline", "pytorch"]["speedup_over_eager"] == pytest.approx(1.0)
    assert rows["baseline", record["best_fp32_runtime"]]["speedup_over_best_fp32"] == pytest.approx(1.0)
    assert ("oneshot-50", "onnxruntime") in rows
    assert "dynamic-int8" not in {name for name, _ in rows}


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
    with pytest.raises(ChestxError, match="cannot be timed"):
        time_jobs([job], 1, lambda: None)


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
    assert _noise({("baseline", "pytorch"): [quiet, quiet]}) == ()
    said = _noise({("baseline", "pytorch"): [quiet, busy, busy]})
    assert "NOISY: the rounds of baseline under pytorch differ by a factor of 4" in said[0]
    assert "took longer than a batch of 16" in said[1]
    assert "One round only" in _noise({("baseline", "pytorch"): [quiet]})[0]
