"""Options from files and variables, checked by the declarations of the commands' options.

Imports `core`.
"""

__all__ = ["precedence", "sources", "toml_files", "values"]
