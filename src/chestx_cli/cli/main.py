"""Entry point of `chestx`: imports only the modules that the given arguments need."""

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
    # Raised outside any command: writing help or the version, or loading plugins.
    except ChestxError as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        from chestx_cli.cli.errors import JSON_FLAG, show_error

        # Without its remedy, which says that results are kept: no command has run.
        shown = OutputError(error.fact) if isinstance(error, OutputError) else error
        show_error(shown, as_json=JSON_FLAG in sys.argv)
        sys.exit(error.exit_code)
    # An interrupt after the command has ended and its handlers are removed.
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _run(words: list[str]) -> None:
    if words == ["--version"]:
        sys.stdout.write(chestx_cli.version_line())
        sys.stdout.flush()
        return
    if COMPLETION in os.environ:
        words = _words_to_complete()
    # Includes the imports, since those of a command take seconds.
    with signals.handled():
        try:
            from chestx_cli.cli.app import app_for

            # Only the named command is imported; for the others their summaries suffice.
            app_for(next((word for word in words if not word.startswith("-")), ""))(words or ["--help"])
        except (SystemExit, KeyboardInterrupt):
            # Typer uses one exit code for all signals.
            if (number := signals.requested()) is not None:
                sys.exit(128 + number)
            raise


def _words_to_complete() -> list[str]:
    """Return the words typed so far after `chestx`, as passed by the shells' completion functions."""
    typed = os.environ.get("_TYPER_COMPLETE_ARGS") or os.environ.get("COMP_WORDS") or ""
    try:
        return shlex.split(typed)[1:]
    except ValueError:
        # An unclosed quote.
        return typed.split()[1:]
