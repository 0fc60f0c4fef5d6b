"""The `chestx` command line as Typer knows it."""

from __future__ import annotations

from typing import Annotated

import typer

import chestx_cli
from chestx_cli.cli.help import command_class, group_class
from chestx_cli.core.record import NOT_A_DEVICE
from chestx_cli.registries import COMMANDS


def app_for(command: str | None) -> typer.Typer:
    """Return the command line with one command in working order, or for None with all of them.

    The others have a name and a summary only, which is all that help and the completion of command names need. Raises
    PluginError where a plugin cannot be loaded.
    """
    about = f"From a folder of chest X-rays to a small, fast, honestly evaluated classifier. {NOT_A_DEVICE}"
    app = typer.Typer(
        name="chestx",
        cls=group_class(about, {name: entry.summary for name, entry in COMMANDS.items()}),
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(help=about)(_root)
    for name, entry in COMMANDS.items():
        if command in (name, None):
            from chestx_cli.cli.adapter import as_command

            stage = entry.load()
            app.command(name, cls=command_class(stage))(as_command(stage))
        else:
            app.command(name, help=entry.summary)(_not_asked_for)
    return app


def _show_version(requested: bool) -> None:
    if requested:
        typer.echo(chestx_cli.version_line(), nl=False)
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Options that belong to no command."""


def _not_asked_for() -> None:
    """Stand for a command that the command line does not name."""
