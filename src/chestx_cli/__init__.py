"""chestx: from a folder of chest X-rays to a small, fast, honestly evaluated classifier. Not a medical device."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# ONNX Runtime reports its own import and keeps an identifier of the machine, on Linux too, unless it finds one of these
# names by then: which one depends on its version. Child processes inherit them.
os.environ.update(ORT_DISABLE_TELEMETRY="1", ORT_TELEMETRY_DISABLED="1")

if TYPE_CHECKING:
    from chestx_cli.cli.notebook import progress as progress
    from chestx_cli.command_table import *  # noqa: F403 - the commands, as type checkers know them
    from chestx_cli.inference.opened_study import open_study as open_study


def version_line() -> str:
    """Return what `chestx --version` prints."""
    return f"chestx {__version__}\n"


def __dir__() -> list[str]:
    """Return the commands, plugins' too, for `dir()` and the completion of names; no room is imported for it."""
    from chestx_cli.registries import COMMANDS

    return [*COMMANDS, "open_study", "progress", "__version__"]


if not TYPE_CHECKING:
    # Type checkers know the commands by the import above: any other attribute is a mistake.
    def __getattr__(name: str) -> Any:
        """Return a command by name, a plugin's too; its module is imported when it is first used."""
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
