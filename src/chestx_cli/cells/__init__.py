"""A study over folds and seeds: its plan, its cells, and the processes that make them.

Imports `core`, `records`, `store` and `evaluation`. The commands that a cell runs are handed to it.
"""

__all__ = ["local", "plan", "pooling", "steps", "toml_files"]
