"""What every command needs: errors, files, signals, options, records, worker processes.

Imports nothing of the package, and of libraries the standard one alone.
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
