"""Models as functions from images to logits: exported, run, timed, bundled, sent to a device.

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
