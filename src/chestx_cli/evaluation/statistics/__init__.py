"""Pure functions on arrays: metrics, intervals, tests, calibration, operating points.

Imports `core` alone.
"""

__all__ = ["auroc", "calibration", "intervals", "metrics", "operating_points", "paired"]
