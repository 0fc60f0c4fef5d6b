"""The `chestx` command's entry: imports only what the words after it need."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import traceback

import chestx_cli
from chestx_cli.cli import streams
from chestx_cli.core import signals
from chestx_cli.core.errors import ChestxError, OutputError

COMPLETION = "_CHESTX_COMPLETE"


def main() -> None:
    """Run the command line."""
    streams.prepare()
    try:
        _run(sys.argv[1:])
    # Help and the version are written outside of any command, and plugins loaded before one.
    except ChestxError as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        from chestx_cli.cli.errors import JSON_FLAG, show_error

        # What the command has made is kept, but here no command has run.
        shown = OutputError(error.fact) if isinstance(error, OutputError) else error
        show_error(shown, as_json=JSON_FLAG in sys.argv)
        sys.exit(error.exit_code)
    # One that comes when the command has ended and its handlers are gone.
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _run(words: list[str]) -> None:
    if words == ["--version"]:
        sys.stdout.write(chestx_cli.version_line())
        sys.stdout.flush()
        return
    if COMPLETION in os.environ:
        words = _words_to_complete()
    # From here on, since importing what a command needs takes seconds.
    with signals.handled():
        try:
            from chestx_cli.cli.app import app_for

            # Only the command that is named is imported: the others are known by their summaries.
            app_for(next((word for word in words if not word.startswith("-")), ""))(words or ["--help"])
        except (SystemExit, KeyboardInterrupt):
            # The library of the command line knows one code for all signals.
            if (number := signals.requested()) is not None:
                sys.exit(128 + number)
            raise


def _words_to_complete() -> list[str]:
    """Return what has been typed so far behind `chestx`, as the shells' completion functions pass it."""
    typed = os.environ.get("_TYPER_COMPLETE_ARGS") or os.environ.get("COMP_WORDS") or ""
    try:
        return shlex.split(typed)[1:]
    except ValueError:
        # A quote that is still open.
        return typed.split()[1:]
