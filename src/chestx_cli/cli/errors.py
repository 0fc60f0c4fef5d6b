"""Output of errors: fact and remedy on stderr, and with `--json` one JSON document on stdout."""

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
    """Print an error to stderr; with `as_json` also print it to stdout as a JSON document."""
    lines = [f"error: {error.fact}"]
    if error.remedy:
        lines.append(f"  {error.remedy}")
    sys.stderr.write("".join(f"{printable(line, keep=chr(10))}\n" for line in lines))
    if as_json:
        document = {"error": {"fact": error.fact, "remedy": error.remedy, "exit_code": error.exit_code}}
        # The error may be that stdout is not writable.
        with contextlib.suppress(OSError, OutputError):
            sys.stdout.write(json.dumps(document, indent=2) + "\n")
            sys.stdout.flush()


class CommandGroup(TyperGroup):
    """The root of the command line, which shows parser errors like all other errors."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Parse the arguments before the command; remember whether errors are to be printed as JSON."""
        self._as_json = JSON_FLAG in args
        with self._shown():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Parse the arguments of the command and run it."""
        with self._shown(ctx):
            return super().invoke(ctx)

    @contextlib.contextmanager
    def _shown(self, context: Any = None) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # Recognised by an attribute: Typer does not export the classes of its parser's errors.
            if not hasattr(error, "format_message"):
                raise
            # None if the command itself is unknown.
            command = context.invoked_subcommand if context is not None else None
            refused = UsageError(error.format_message().replace("Value error, ", ""), _help_on(command))
            show_error(refused, as_json=self._as_json)
            raise typer.Exit(refused.exit_code) from None


def _help_on(command: str | None) -> str:
    return f'"chestx {command} --help" lists its options' if command else '"chestx --help" lists the commands'
