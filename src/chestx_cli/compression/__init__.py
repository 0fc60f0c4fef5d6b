"""Smaller and faster networks within limits.

Imports `core`, `records`, `store`, `evaluation`, `networks` and `inference`; not `data`.
"""

__all__ = ["cost_probe", "search"]
