"""The study directory: where everything lies, and reading and writing it whole.

Imports `core` and `records`. It stores models as bytes and knows no networks.
"""

__all__ = ["caveats", "checkpoints", "directory", "documents", "lineage", "locks", "split", "tables", "variants"]
