"""Data-parallel training: several processes that compute together what one would compute.

Imports `core`.
"""

__all__ = ["launching", "ranks", "whole_batch"]
