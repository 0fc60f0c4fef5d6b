"""The machine: its description and its peak rates; `python -m tools.harness.machine` prints both as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from chestx_cli.core.machine import environment
from chestx_cli.networks.devices import resolve_precision

SIDE = 2048
REPEATS = 5
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def describe() -> dict[str, str]:
    """Return the environment of a measurement: versions, processor and its instructions, memory, GPU."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text(errors="replace").split()) if cpuinfo.exists() else set()
    meminfo = Path("/proc/meminfo")
    total_kib = int(meminfo.read_text().split()[1]) if meminfo.exists() else 0
    return {
        **environment(),
        "instructions": ", ".join(name for name in FEATURES if name in flags) or "unknown",
        "memory": f"{total_kib / 2**20:.0f} GiB",
    }


def best_rate(multiply: Callable[[], object]) -> float:
    """Return the best rate, in operations per second, of several products of two square matrices."""
    multiply()
    seconds = []
    for _ in range(REPEATS):
        started_s = time.perf_counter()
        multiply()
        seconds.append(time.perf_counter() - started_s)
    return 2 * SIDE**3 / min(seconds)


def measure_peaks() -> dict[str, float]:
    """Return the operations per second of large matrix products: FP32 and bf16 in torch, INT8 in ONNX Runtime.

    bf16 is omitted if the processor only emulates it.
    """
    import torch

    a = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    peaks = {}
    with torch.inference_mode():
        peaks["fp32"] = best_rate(lambda: a @ a)
        if resolve_precision("auto", "cpu") == "bf16":
            half = a.bfloat16()
            peaks["bf16"] = best_rate(lambda: half @ half)
        peaks["int8"] = best_rate(_int8_product())
    return peaks


def _int8_product() -> Callable[[], object]:
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (SIDE, SIDE), dtype=np.int8)
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, [SIDE, SIDE])
    y = helper.make_tensor_value_info("y", TensorProto.INT32, [SIDE, SIDE])
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "product",
        [x],
        [y],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(environment()["threads"])
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    inputs = {"x": rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)}
    return lambda: session.run(None, inputs)


if __name__ == "__main__":
    print(json.dumps({"machine": describe(), "operations_per_s": measure_peaks()}))
