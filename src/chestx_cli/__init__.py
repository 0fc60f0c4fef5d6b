"""chestx: from a folder of chest X-rays to a small, fast, honestly evaluated classifier. Not a medical device."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# ONNX Runtime sends telemetry about its import and stores an identifier of the machine, also on Linux, unless one of
# these variables is set by then; which one depends on its version. Child processes inherit them.
os.environ.update(ORT_DISABLE_TELEMETRY="1", ORT_TELEMETRY_DISABLED="1")

if TYPE_CHECKING:
    from chestx_cli.cli.notebook import progress as progress
    from chestx_cli.command_table import *  # noqa: F403 - the commands, as type checkers know them
    from chestx_cli.inference.opened_study import open_study as open_study


def version_line() -> str:
    """Return what `chestx --version` prints."""
    return f"chestx {__version__}\n"


def __dir__() -> list[str]:
    """Return the names of all commands, including plugins', for `dir()` and name completion; imports no room."""
    from chestx_cli.registries import COMMANDS

    return [*COMMANDS, "open_study", "progress", "__version__"]


if not TYPE_CHECKING:
    # Type checkers know the commands by the import above: any other attribute is an error.
    def __getattr__(name: str) -> Any:
        """Return a command by name, including plugins'; its module is imported at the first use."""
        if name == "progress":
            from chestx_cli.cli.notebook import progress

            return progress
        if name == "open_study":
            from chestx_cli.inference.opened_study import open_study

            return open_study
        if not name.startswith("_"):
            from chestx_cli.registries import COMMANDS

            if name in COMMANDS:
                return COMMANDS[name].load()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])
