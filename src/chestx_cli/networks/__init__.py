"""Torch networks: built, loaded, trained, stored.

Imports `core`, `records`, `store`, `data` and, for the metrics of an epoch, `evaluation`.
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
    "training",
    "training_data",
]
