"""Latencies with hidden instruction sets: what is compared with what, and the runtime that chestx itself never uses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from chestx_cli.inference.runtimes import RUNTIMES, Model
from chestx_cli.inference.timing import Job
from tools.benchmarks.processors import ONNX, OPENVINO, SATURATING, Side, latency_table, lines_of
from tools.harness.processes import module, run_process


def job_of(path: str, runtime: str) -> Job:
    """Return a job that is over quickly."""
    model = Model(path=path, kind="onnx", backbone="resnet18", n_classes=2)
    return Job(
        model=model,
        runtime=runtime,
        device="cpu",
        threads=1,
        image_size_px=8,
        batch_sizes=(1,),
        duration_s=0.01,
        seed=1,
    )


def side(variant: str, runtime: str, parent: str | None = None) -> Side:
    return Side(level="avx512", variant=variant, runtime=runtime, parent=parent, job=job_of("x", runtime))


def test_ratios_are_to_the_own_fp32_and_to_the_fastest_baseline() -> None:
    timed = [
        (side("baseline", "pytorch"), [90.0, 110.0, 100.0]),
        (side("baseline", ONNX), [60.0, 60.0, 60.0]),
        (side("baseline", OPENVINO), [50.0, 50.0, 50.0]),
        (side("narrow", ONNX), [20.0, 20.0, 20.0]),
        (side("narrow-int8", ONNX, "narrow"), [10.0, 8.0, 12.5]),
        (side("narrow-int8", SATURATING, "narrow"), [5.0, 5.0, 5.0]),
    ]
    lines = lines_of([one for one, _ in timed], [ms for _, ms in timed])
    exact, saturating = lines[-2:]
    assert (exact.p50_ms, exact.share, exact.speedup, exact.eager) == (10.0, 0.5, 5.0, 9.0)
    assert exact.share_interval is not None
    assert exact.eager_interval is not None
    assert exact.eager_interval[0] < 9.0 < exact.eager_interval[1]
    assert exact.share_interval[0] < 0.5 < exact.share_interval[1]
    # Without exact sums a file is compared with FP32 under the same runtime.
    assert (saturating.share, saturating.speedup) == (0.25, 10.0)
    assert [line.share for line in lines[:4]] == [None] * 4
    assert "| AVX512, VNNI and BF16 | narrow-int8 | onnxruntime | 10.00 | 0.50 (" in latency_table(lines)


def test_the_saturating_runtime_times_a_file_and_is_not_offered(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    ends = [helper.make_tensor_value_info(name, kind, [1, 3, 8, 8]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", ends[:1], ends[1:])
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "relu.onnx")
    document = json.dumps(dataclasses.asdict(job_of(str(tmp_path / "relu.onnx"), SATURATING)))
    answer = json.loads(run_process(module("benchmarks.processors", "--job", document)).out.splitlines()[-1])
    assert len(answer["seconds"]["1"]) >= 3
    assert SATURATING not in RUNTIMES
