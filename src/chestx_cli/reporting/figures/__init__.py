"""Figures of a study.

Imports what `reporting` imports; not `page`.
"""

__all__ = ["drawing", "style"]
