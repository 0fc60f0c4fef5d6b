"""Torch networks: building, loading, training, storing.

Imports `core`, `records`, `store`, `data` and, for per-epoch metrics, `evaluation`.
"""

__all__ = [
    "backbones",
    "batchnorm_folding",
    "devices",
    "distillation",
    "layers",
    "losses",
    "memory",
    "recalibration",
    "recipe",
    "training",
    "training_data",
]
