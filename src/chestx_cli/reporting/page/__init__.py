"""Report of a study as HTML and Markdown.

Imports what `reporting` imports, and `figures`.
"""

__all__ = ["blocks", "pictures", "pooled", "statements", "writing"]
