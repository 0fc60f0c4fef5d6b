"""Quantization of networks to 8 bits.

Imports what `compression` imports; of `pruning`, only the sensitivity measure.
"""

__all__ = ["layer_sensitivity", "methods", "onnx_graph", "ranges", "static", "target_cpus"]
