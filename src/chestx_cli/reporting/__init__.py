"""Presentation of a study's results: answers, decisions, figures and pages.

Imports `core`, `settings`, `records`, `store`, `data`, `evaluation` and `inference`; not `networks`, not `compression`.
"""

__all__ = ["answers", "config_answer", "decision", "prediction_answer", "status_answer", "study_answer"]
