"""Compression of networks within limits on latency, size and quality.

Imports `core`, `records`, `store`, `evaluation`, `networks` and `inference`; not `data`.
"""

__all__ = ["cost_probe", "search"]
