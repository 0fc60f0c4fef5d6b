"""Measurements that take longer than tests: run them with `python -m benchmarks.NAME`."""
