"""A study's results for the reader: answers, decisions, figures and pages.

Imports `core`, `records`, `store`, `data`, `evaluation` and `inference`; not `networks`, not `compression`.
"""

__all__ = ["answers", "decision", "prediction_answer", "study_answer"]
