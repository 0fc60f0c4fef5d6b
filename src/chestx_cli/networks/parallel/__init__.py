"""Data-parallel training: several processes that together compute the result of one.

Imports `core`.
"""

__all__ = ["launching", "ranks", "whole_batch"]
