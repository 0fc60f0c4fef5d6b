"""Reference for `chestx quantize --method static`: NNCF post-training quantization with defaults, under OpenVINO.

    python -m tools.benchmarks.reference.nncf_int8 quantize model.onnx images.npy out.xml
    python -m tools.benchmarks.reference.nncf_int8 time out.xml SIDE_PX THREADS SECONDS

`images.npy` contains network input [N, 3, H, W], all of it used for calibration. The model is the unpruned FP32
network. `time` prints the durations in seconds of single-image calls as a JSON list.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

WARMUP_CALLS = 5


def quantize(model: Path, images: Path, out: Path) -> None:
    """Quantize an ONNX file with NNCF and write it in OpenVINO's format."""
    import nncf
    import openvino

    calibration = np.load(images, allow_pickle=False)
    samples = nncf.Dataset([calibration[i : i + 1] for i in range(len(calibration))])
    quantized = nncf.quantize(openvino.Core().read_model(model), samples, subset_size=len(calibration))
    openvino.save_model(quantized, out)


def time_calls(model: Path, side_px: int, threads: int, duration_s: float) -> list[float]:
    """Return the seconds of each call with one image, after warming up, for at least `duration_s`."""
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    inputs = np.random.default_rng(42).standard_normal((1, 3, side_px, side_px), dtype=np.float32)
    for _ in range(WARMUP_CALLS):
        compiled(inputs, share_inputs=True)
    found: list[float] = []
    deadline_s = time.perf_counter() + duration_s
    while time.perf_counter() < deadline_s:
        started_s = time.perf_counter()
        compiled(inputs, share_inputs=True)
        found.append(time.perf_counter() - started_s)
    return found


def main(words: list[str]) -> None:
    """Quantize or time, depending on the first argument."""
    # Importing either library would send telemetry.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # no module: its import fails
    if words[0] == "quantize":
        quantize(*(Path(word) for word in words[1:4]))
    else:
        print(json.dumps(time_calls(Path(words[1]), int(words[2]), int(words[3]), float(words[4]))))


if __name__ == "__main__":
    main(sys.argv[1:])
