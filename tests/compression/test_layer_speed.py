"""`chestx quantize --method static --skip-slower`: decided by injected times, as real ones differ from run to run."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chestx_cli.compression.quantization import layer_speed
from chestx_cli.compression.quantization.layer_speed import (
    ROUNDS,
    SEARCH_ROUNDS,
    LayerTimes,
    by_layer,
    names_of_layers,
    prefixes,
    slower_layers,
    time_layers,
)
from chestx_cli.compression.quantization.onnx_graph import layers_of, quantizable_graph
from chestx_cli.core.machine import Waiting
from chestx_cli.inference.onnx_export import export_onnx
from chestx_cli.inference.runtimes import profile_nodes
from chestx_cli.inference.timing import Job, Round
from chestx_cli.networks.backbones import build_classifier
from chestx_cli.records.variant import INT8_EVERYWHERE, SOME_IN_FP32
from conftest import Chestx

LAYERS = ("conv1", "conv2", "fc.0", "fc.4")
STATIC = ("quantize", "--method", "static", "--calibration-images", "8", "--skip-slower")


def steady(fp32_us: float, int8_us: float) -> LayerTimes:
    """Return times that scatter by one per cent."""
    scatter = [1 + 0.01 * (number % 3 - 1) for number in range(ROUNDS)]
    return LayerTimes(
        fp32_s=tuple(1e-6 * fp32_us for _ in scatter), int8_s=tuple(1e-6 * int8_us * share for share in scatter)
    )


def injected(
    monkeypatch: pytest.MonkeyPatch, times: dict[str, LayerTimes], *latencies_ms: tuple[tuple[float, ...], ...]
) -> list[int]:
    """Give layers these times, and files these latencies: for each run, for each file, one per round."""
    runs: list[int] = []

    def time_jobs(jobs: list[Job], rounds: int, advance: Any) -> list[list[Round]]:
        given = latencies_ms[len(runs)]
        runs.append(len(jobs))
        assert all(Path(job.model.path).exists() for job in jobs)
        assert [len(own) for own in given] == [rounds] * len(jobs)
        advance()
        return [[Round(seconds={1: (1e-3 * latency_ms,)}) for latency_ms in own] for own in given]

    monkeypatch.setattr(layer_speed, "time_layers", lambda *_: times)
    monkeypatch.setattr(layer_speed, "time_jobs", time_jobs)
    return runs


ONE_MS = (1.0,) * ROUNDS
FASTER_MS = (0.9, 0.89, 0.91, 0.9, 0.9, 0.88, 0.92)


def quantized(chestx: Chestx, study: Path, *words: object) -> dict[str, Any]:
    outcome = chestx(*STATIC, *words, "--study", study, "--force", "--json")
    assert outcome.code == 0, outcome.err
    return outcome.json()


def bits_of(record: dict[str, Any]) -> dict[str, int]:
    return {row["layer"]: row["bits"] for row in record["quantization"]["weights"]}


TIMES = {"conv1": steady(10, 25), "conv2": steady(10, 5), "fc.0": steady(40, 60), "fc.4": steady(10, 10)}


@pytest.mark.parametrize(("in_fp32", "search_ms"), [(1, (0.8, 0.9)), (2, (0.9, 0.8))])
def test_as_many_of_the_slower_layers_stay_in_fp32_as_make_the_fastest_file(
    chestx: Chestx, study: Path, monkeypatch: pytest.MonkeyPatch, in_fp32: int, search_ms: tuple[float, float]
) -> None:
    search = tuple((latency_ms,) * SEARCH_ROUNDS for latency_ms in search_ms)
    runs = injected(monkeypatch, TIMES, search, (ONE_MS, FASTER_MS))
    record = quantized(chestx, study)
    # The chosen file is timed again: the least of several times is biased.
    assert runs == [2, 2]
    speeds = record["quantization"]["layer_speeds"]
    assert (speeds["kept"], speeds["tried_layers"], speeds["timed_layers"]) == (SOME_IN_FP32, in_fp32, 4)
    assert speeds["speedup"] == pytest.approx(1 / 0.9)
    assert 1 < speeds["speedup_interval"][0] < speeds["speedup"] < speeds["speedup_interval"][1]
    # That which loses most time is the first, not that of the largest ratio.
    assert [row["layer"] for row in speeds["rows"]] == ["fc.0", "conv1"]
    assert [row["in_fp32"] for row in speeds["rows"]] == [True, in_fp32 == 2]
    assert (speeds["rows"][1]["fp32_us"], speeds["rows"][1]["int8_us"]) == pytest.approx((10, 25))
    low, high = speeds["rows"][1]["times_slower_interval"]
    assert 2.4 < low < 2.5 < high < 2.6
    assert bits_of(record) == {"conv1": 32 if in_fp32 == 2 else 8, "conv2": 8, "fc.0": 32, "fc.4": 8}
    assert record["options"]["skip_slower"] is True
    assert "2 of 4 layers; fc.0 loses most" in record["notes"][-1]
    assert f"The file has {in_fp32} layer" in record["notes"][-1]
    assert not any("do not expect it to be faster" in note for note in record["notes"])
    answer = " ".join(chestx(*STATIC, "--study", study).out.split())
    assert f"Layers slower in INT8 here: 2 of 4; left in FP32: {in_fp32}." in answer
    shown = chestx(*STATIC, "--study", study, "--full").out
    assert "Slower in INT8" in shown
    assert "Layers timed on" in shown


@pytest.mark.parametrize(
    ("search_ms", "file_ms"),
    [
        # Both times an interval would show the file to be faster.
        (
            ((0.8,) * SEARCH_ROUNDS, (0.9,) * SEARCH_ROUNDS),
            tuple(0.3 if number % 2 else 0.5 for number in range(ROUNDS)),
        ),
        (((0.8,) * SEARCH_ROUNDS, (0.9, 0.9, 1.8)), FASTER_MS),
    ],
    ids=["the file", "the search"],
)
def test_no_layer_is_left_in_fp32_by_the_times_of_a_busy_machine(
    chestx: Chestx,
    study: Path,
    monkeypatch: pytest.MonkeyPatch,
    search_ms: tuple[tuple[float, ...], ...],
    file_ms: tuple[float, ...],
) -> None:
    injected(monkeypatch, TIMES, search_ms, (ONE_MS, file_ms))
    record = quantized(chestx, study)
    speeds = record["quantization"]["layer_speeds"]
    assert (speeds["is_rough"], speeds["kept"]) == (True, INT8_EVERYWHERE)
    assert speeds["speedup_interval"][0] > 1
    assert not any(row["in_fp32"] for row in speeds["rows"])
    assert "the times are too noisy to say" in record["notes"][-1]
    assert "NOISY, since the machine was busy" in record["notes"][-1]
    answer = " ".join(chestx(*STATIC, "--study", study).out.split())
    assert "left in FP32: 0; NOISY, since the machine was busy, or its threads competed." in answer


@pytest.mark.parametrize(
    "mixed_ms",
    [(1.1,) * ROUNDS, (0.8, 1.2, 0.9, 1.1, 0.8, 1.2, 0.9)],
    ids=["slower", "not shown to be faster"],
)
def test_the_file_in_int8_everywhere_is_kept_unless_the_other_is_shown_to_be_faster(
    chestx: Chestx, study: Path, monkeypatch: pytest.MonkeyPatch, mixed_ms: tuple[float, ...]
) -> None:
    runs = injected(monkeypatch, {"conv1": steady(10, 25), "conv2": steady(10, 5)}, (ONE_MS, mixed_ms))
    record = quantized(chestx, study)
    assert runs == [2]
    speeds = record["quantization"]["layer_speeds"]
    assert speeds["kept"] == INT8_EVERYWHERE
    assert [(row["layer"], row["in_fp32"]) for row in speeds["rows"]] == [("conv1", False)]
    assert set(bits_of(record).values()) == {8}
    assert "all are in INT8" in record["notes"][-1]
    plain = chestx(*STATIC[:-1], "--study", study, "--force", "--json").json()
    assert plain["model_sha256"] == record["model_sha256"]
    assert plain["quantization"]["layer_speeds"] is None


def test_without_a_slower_layer_no_second_file_is_timed(
    chestx: Chestx, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = injected(monkeypatch, {name: steady(10, 5) for name in LAYERS})
    record = quantized(chestx, study)
    assert runs == []
    assert record["quantization"]["layer_speeds"]["speedup"] is None
    assert "none of 4 layers" in record["notes"][-1]


def test_the_numbers_of_layers_tried_are_doubled() -> None:
    assert [prefixes(n) for n in (1, 2, 3, 4, 9)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4], [1, 2, 4, 8, 9]]


def test_one_slow_time_or_a_small_difference_makes_no_layer_slower() -> None:
    usual, once = (1.0,) * ROUNDS, (*(0.9,) * (ROUNDS - 1), 30.0)
    times = {
        "scattered": LayerTimes(fp32_s=usual, int8_s=once),
        "by 4 per cent": LayerTimes(fp32_s=usual, int8_s=tuple(1.04 + 0.001 * number for number in range(ROUNDS))),
        "unknown": LayerTimes(fp32_s=(1.0, 1.0), int8_s=(2.0, 2.0)),
        "by 40 per cent": LayerTimes(fp32_s=usual, int8_s=tuple(1.4 + 0.001 * number for number in range(ROUNDS))),
    }
    assert [row.layer for row in slower_layers(times)] == ["by 40 per cent"]


def test_what_follows_a_layer_counts_for_it() -> None:
    names = {"node_Conv_1": "conv1", "relu": "conv1", "node_Conv_2": "conv2"}
    nodes = [
        ("images_QuantizeLinear", 1.0),
        ("node_Conv_1_token_3", 2.0),
        ("value_DequantizeLinear", 4.0),
        ("HardSigmoid_7", 8.0),
        ("node_Conv_2_token_9", 16.0),
    ]
    assert by_layer(nodes, names) == {"conv1": 14.0, "conv2": 16.0}
    assert by_layer([("relu_nchwc", 1.0), ("ReorderOutput", 2.0), ("fused node_Conv_2", 4.0)], names) == {
        "conv1": 3.0,
        "conv2": 4.0,
    }


def test_times_are_taken_in_turns_without_the_first_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[bytes] = []

    def profile_nodes(model: bytes, *_: object) -> Iterator[tuple[str, tuple[float, ...]]]:
        turns.append(model)
        found = {b"fp32": ("a", "b"), b"int8": ("a", "c")}[model]
        yield from ((name, (99.0, 99.0, 99.0, len(turns), len(turns), 99.0, len(turns))) for name in found)

    monkeypatch.setattr(layer_speed, "profile_nodes", profile_nodes)
    files = {"fp32": b"fp32", "int8": b"int8"}
    advanced: list[None] = []
    times = time_layers(
        files,
        {"a": "in both", "b": "lost", "c": "new"},
        np.zeros(1, np.float32),
        1,
        Waiting(),
        lambda: advanced.append(None),
    )
    assert turns[:4] == [b"fp32", b"int8", b"int8", b"fp32"]
    assert len(advanced) == len(turns) == 2 * ROUNDS
    # A layer that is not found in both is not timed.
    assert set(times) == {"in both"}
    assert times["in both"].fp32_s[:3] == (1, 4, 5)
    assert times["in both"].int8_s[:3] == (2, 3, 6)


@pytest.mark.parametrize("backbone", ["tiny", "mobilenet_v3_small"])
def test_the_layers_are_found_in_what_the_runtime_executes(backbone: str) -> None:
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)
    graph = quantizable_graph(export_onnx(build_classifier(backbone, 2).eval(), image))
    layers = layers_of(graph)
    names = names_of_layers(graph, layers)
    blocks: list[str] = []

    class Noted(Waiting):
        def __exit__(self, *error: object) -> None:
            blocks.append("calls")
            super().__exit__(*error)

    profiled = profile_nodes(graph.SerializeToString(), image, 1, 2, Noted())
    assert blocks == ["calls"]
    assert all(len(calls) == 2 for _, calls in profiled)
    seconds = by_layer([(name, statistics.median(calls)) for name, calls in profiled], names)
    found = len(seconds) / len(layers)
    # In MobileNet a few are fused with an activation of another kind.
    assert found == 1 if backbone == "tiny" else found > 0.8
