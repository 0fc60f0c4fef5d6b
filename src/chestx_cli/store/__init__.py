"""The study directory: its layout, and consistent reads and writes of its files.

Imports `core` and `records`. Models are stored as bytes; networks are unknown here.
"""

__all__ = ["caveats", "checkpoints", "directory", "documents", "lineage", "locks", "split", "tables", "variants"]
