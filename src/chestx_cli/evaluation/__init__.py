"""Predictions judged: verdicts, and every table made of them.

Imports `core`, `records` and `study`; not `data`, and no network.
"""
