"""Networks in 8 bits.

Imports what `compression` imports, and of `pruning` the measure of sensitivity.
"""

__all__ = ["layer_sensitivity", "methods", "onnx_graph", "ranges", "static", "target_cpus"]
