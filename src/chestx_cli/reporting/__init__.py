"""What is shown of a study.

Imports `core`, `records`, `study`, `data`, `evaluation` and `inference`; not `networks`, not `compression`.
"""

__all__ = ["answers", "decision"]
