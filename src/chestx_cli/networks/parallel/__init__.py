"""Data-parallel training: several processes that compute together what one would compute.

Imports `core` only, of this package.
"""

__all__ = ["launching", "ranks", "whole_batch"]
