"""Torch networks: built, loaded, trained, stored.

Imports `core`, `records`, `study`, `data` and, for the metrics of an epoch, `evaluation`.
"""
