"""The schema of every JSON document of a study.

Imports `core`.
"""

__all__ = ["answers", "benchmark", "commands", "evaluation", "preprocessing", "sensitivity", "split", "variant"]
