"""The schema of every JSON document of a study.

Imports `core`.
"""

__all__ = [
    "answers",
    "benchmark",
    "cells",
    "commands",
    "configuration",
    "evaluation",
    "prediction",
    "preprocessing",
    "sensitivity",
    "split",
    "status",
    "tabular",
    "training_images",
    "variant",
]
