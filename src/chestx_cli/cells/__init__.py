"""A study over folds and seeds: its plan, its cells, and the executors that run them.

Imports `core`, `settings`, `records`, `store` and `evaluation`. Callers pass in the commands that a cell runs.
"""

__all__ = [
    "answered",
    "declaring",
    "fits",
    "local",
    "plan",
    "pooling",
    "processes",
    "ray_cluster",
    "running",
    "steps",
    "study_file",
]
