"""Errors as people and programs read them: a fact and a remedy on stderr, one JSON document on stdout for `--json`."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from chestx_cli.core.errors import ChestxError, OutputError, UsageError
from chestx_cli.core.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

JSON_FLAG = "--json"


def show_error(error: ChestxError, *, as_json: bool) -> None:
    """Print an error; with `as_json` stdout has it as a document, too."""
    lines = [f"error: {error.fact}"]
    if error.remedy:
        lines.append(f"  {error.remedy}")
    sys.stderr.write("".join(f"{printable(line, keep=chr(10))}\n" for line in lines))
    if as_json:
        document = {"error": {"fact": error.fact, "remedy": error.remedy, "exit_code": error.exit_code}}
        # The error may be that stdout takes nothing.
        with contextlib.suppress(OSError, OutputError):
            sys.stdout.write(json.dumps(document, indent=2) + "\n")
            sys.stdout.flush()


class CommandGroup(TyperGroup):
    """The command line's root: what its parser refuses is shown as every other error is."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Parse the words before the command, and remember whether the errors of all are wanted as JSON."""
        self._as_json = JSON_FLAG in args
        with self._shown():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Parse the words of the command, and run it."""
        with self._shown(ctx):
            return super().invoke(ctx)

    @contextlib.contextmanager
    def _shown(self, context: Any = None) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # The parser's own errors have no name that may be imported: Typer keeps its parser to itself.
            if not hasattr(error, "format_message"):
                raise
            # Where it is the command itself that is unknown, none has been invoked.
            command = context.invoked_subcommand if context is not None else None
            refused = UsageError(error.format_message().replace("Value error, ", ""), _help_on(command))
            show_error(refused, as_json=self._as_json)
            raise typer.Exit(refused.exit_code) from None


def _help_on(command: str | None) -> str:
    return f'"chestx {command} --help" lists its options' if command else '"chestx --help" lists the commands'
