"""Evaluation of predictions: verdicts and result tables.

Imports `core`, `records` and `store`; not `data`, and no network.
"""

__all__ = [
    "cells",
    "comparison",
    "endpoints",
    "learned",
    "pareto",
    "predictions",
    "reading",
    "result_tables",
    "results",
    "subgroups",
    "variant_tables",
    "verdicts",
]
