"""The command line: the only room that prints.

Imports `core` and `settings`, and commands by name through the package.
"""

__all__ = ["main", "notebook"]
