"""Compression of networks within limits on latency, size and quality.

Imports `core`, `records`, `store`, `evaluation`, `networks` and `inference`; not `data`.
"""

__all__ = ["search", "search_folds", "searched_models", "short_fits"]
