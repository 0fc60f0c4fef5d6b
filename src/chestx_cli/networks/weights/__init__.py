"""Weights as files: read safely, from other tools too, stored, and rebuilt to networks.

Imports what `networks` imports, and of it the backbones and their layers.
"""

__all__ = ["pretrained", "safe_readers", "serialization"]
