"""A study's figures.

Imports what `reporting` imports; not `page`.
"""

__all__ = ["drawing", "style"]
