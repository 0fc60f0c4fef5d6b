"""The commands, one function in one file each: options and orchestration.

Imports every room below. No room imports it: the package knows commands by name, from the generated `command_table`.
"""

__all__ = [
    "benchmark",
    "compare",
    "compress",
    "config",
    "demo",
    "distill",
    "doctor",
    "evaluate",
    "export",
    "predict",
    "prune",
    "quantize",
    "report",
    "sensitivity",
    "split",
    "status",
    "study",
    "train",
]
