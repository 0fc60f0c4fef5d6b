"""One command, one file, one function; they are options and orchestration.

Imports every room below. Nothing imports it but the package itself, which knows commands by name.
"""

__all__ = [
    "benchmark",
    "compare",
    "compress",
    "demo",
    "evaluate",
    "export",
    "prune",
    "quantize",
    "report",
    "sensitivity",
    "split",
    "train",
]
