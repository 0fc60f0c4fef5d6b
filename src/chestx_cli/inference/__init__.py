"""Models as functions from images to logits: export, prediction, timing, bundles for devices.

Imports the rooms below: `core` to `networks`.
"""

__all__ = [
    "bundles",
    "external_images",
    "onnx_export",
    "opened_study",
    "prediction",
    "predictions_file",
    "predictor",
    "runtimes",
    "speedups",
    "ssh_benchmark",
    "thresholds",
    "timing",
]
