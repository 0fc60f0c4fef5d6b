"""The peer of `chestx quantize --method static`: NNCF's post-training quantization with its defaults, for OpenVINO.

    python -m benchmarks.reference.nncf_int8 model.onnx images.npy out.xml

`images.npy` holds network input [N, 3, H, W]; all of it calibrates. The model is the unpruned FP32 network.
"""

from __future__ import annotations

import sys
from pathlib import Path


def quantize(model: Path, images: Path, out: Path) -> None:
    """Write the INT8 model that NNCF makes of an ONNX file, as OpenVINO's own pair of files."""
    # Importing either would report it over the network.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import nncf
    import numpy as np
    import openvino

    calibration = np.load(images, allow_pickle=False)
    network = openvino.Core().read_model(model)
    samples = nncf.Dataset([calibration[i : i + 1] for i in range(len(calibration))])
    quantized = nncf.quantize(network, samples, subset_size=len(calibration))
    openvino.save_model(quantized, out)


if __name__ == "__main__":
    quantize(*(Path(word) for word in sys.argv[1:4]))
