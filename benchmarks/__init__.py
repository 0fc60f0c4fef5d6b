"""Measurements of chestx against what a competent user would write by hand; run as `python -m benchmarks.NAME`."""
