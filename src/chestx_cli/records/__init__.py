"""The schema of every JSON document of a study.

Imports `core`.
"""

__all__ = ["benchmark", "commands", "evaluation", "preprocessing", "sensitivity", "split", "variant"]
