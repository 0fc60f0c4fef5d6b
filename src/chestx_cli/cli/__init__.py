"""The command line: the only room that prints.

Imports `core`, and commands by their names through the package.
"""

__all__ = ["main", "notebook"]
