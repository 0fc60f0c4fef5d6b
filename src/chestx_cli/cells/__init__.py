"""A study over folds and seeds: its plan, its cells, and who makes them.

Imports `core`, `records`, `store` and `evaluation`. The commands that a cell runs are handed to it.
"""

__all__ = ["local", "plan", "pooling", "processes", "ray_cluster", "running", "steps", "toml_files"]
