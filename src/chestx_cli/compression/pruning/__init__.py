"""Pruning: zeroed weights, removed channels, and the sensitivity of each layer.

Imports what `compression` imports; not `quantization`.
"""

__all__ = [
    "allocation",
    "channel_removal",
    "criteria",
    "group_sensitivity",
    "layer_sensitivity",
    "method_bases",
    "methods",
    "onednn_int8",
    "structured",
    "unstructured",
    "width",
]
