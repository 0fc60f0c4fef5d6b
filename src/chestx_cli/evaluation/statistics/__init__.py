"""Pure functions on arrays: metrics, intervals, tests, calibration, operating points.

Imports `core` alone.
"""
