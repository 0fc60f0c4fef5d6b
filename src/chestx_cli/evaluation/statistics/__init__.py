"""Pure functions on arrays: metrics, log-loss, intervals, tests, calibration, operating points.

Imports `core` alone.
"""

__all__ = ["auroc", "calibration", "influence", "intervals", "metrics", "operating_points", "outcome", "paired"]
