"""The basis of every command: errors, files, signals, options, records, worker processes.

Imports the standard library only.
"""

__all__ = [
    "command",
    "errors",
    "files",
    "machine",
    "options",
    "plugins",
    "printable",
    "progress",
    "record",
    "registry",
    "shared_options",
    "signals",
    "signature",
    "worker",
]
