"""Weights files: safe reading (also of other tools' files), storing, and rebuilding of networks.

Imports what `networks` imports, and its backbones and layers.
"""

__all__ = ["pretrained", "safe_readers", "serialization", "zstd"]
