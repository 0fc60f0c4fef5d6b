"""The lists of commands, generated from their files: `python -m tools.command_table` writes them into the package."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chestx_cli.core.command import Stage

SOURCE = Path(__file__).parents[1] / "src" / "chestx_cli"
TABLE = SOURCE / "command_table.py"
ROOM = SOURCE / "commands" / "__init__.py"


def commands() -> tuple[Stage[..., Any], ...]:
    """Return the commands of the files in `commands/`, each after the command that it names as `after`, if any.

    Of several commands with the same `after`, the one with the fewest followers comes first. Raises ValueError if
    `after` is not a command, or follows the command itself.
    """
    names = sorted(path.stem for path in (SOURCE / "commands").glob("*.py") if path.stem != "__init__")
    stages = [getattr(importlib.import_module(f"chestx_cli.commands.{name}"), name) for name in names]

    def following(name: str) -> list[Stage[..., Any]]:
        chains = [[stage, *following(stage.name)] for stage in stages if stage.after == name]
        return [stage for chain in sorted(chains, key=len) for stage in chain]

    placed = following("")
    if unplaced := {stage.name for stage in stages} - {stage.name for stage in placed}:
        raise ValueError(f"nothing comes before {', '.join(sorted(unplaced))}")
    return tuple(placed)


def table() -> str:
    """Return the source of the module that lists all commands."""
    stages = commands()
    names = sorted(stage.name for stage in stages)
    lines = [
        '"""Every command and its summary. Generated from the files of `commands/` by `make docs`; do not edit."""',
        "",
        "from __future__ import annotations",
        "",
        "from typing import TYPE_CHECKING",
        "",
        "if TYPE_CHECKING:",
        *(f"    from chestx_cli.commands.{name} import {name}" for name in names),
        "",
        *_all_of(names),
        "",
        "SUMMARIES = {",
        *(f'    "{stage.name}": {json.dumps(stage.summary, ensure_ascii=False)},' for stage in stages),
        "}",
    ]
    return "\n".join(lines) + "\n"


def room() -> str:
    """Return the source of the commands' `__init__`, whose docstring is kept and whose `__all__` is every command."""
    names = sorted(stage.name for stage in commands())
    docstring = ROOM.read_text(encoding="utf-8").partition("\n__all__")[0].rstrip()
    return "\n".join([docstring, "", *_all_of(names)]) + "\n"


def _all_of(names: list[str]) -> list[str]:
    return ["__all__ = [", *(f'    "{name}",' for name in names), "]"]


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
    ROOM.write_text(room(), encoding="utf-8")
