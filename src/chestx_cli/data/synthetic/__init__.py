"""Synthetic chest radiographs, drawn without patient data.

Imports `core`.
"""

__all__ = ["sets"]
