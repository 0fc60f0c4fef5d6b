"""Zeros and removed channels, and what each layer bears.

Imports what `compression` imports; not `quantization`.
"""

__all__ = [
    "allocation",
    "channel_removal",
    "criteria",
    "group_sensitivity",
    "layer_sensitivity",
    "methods",
    "structured",
    "unstructured",
]
