"""The schema of every JSON document of a study.

Imports `core`.
"""
