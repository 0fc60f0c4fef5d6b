"""Benchmarks that take longer than tests; run them with `python -m tools.benchmarks.NAME`."""
