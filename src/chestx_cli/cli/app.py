"""The `chestx` command line as a Typer application."""

from __future__ import annotations

from typing import Annotated

import typer

import chestx_cli
from chestx_cli.cli.help import command_class, group_class
from chestx_cli.core.record import NOT_A_DEVICE
from chestx_cli.registries import COMMANDS


def app_for(command: str | None) -> typer.Typer:
    """Return the command line with one command loaded, or all of them for None.

    The others have only a name and a summary, which suffice for help and the completion of command names. Raises
    PluginError if a plugin cannot be loaded.
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
            app.command(name, cls=command_class(stage))(as_command(name, stage))
        else:
            app.command(name, help=entry.summary)(_placeholder)
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
    """Options of `chestx` itself, before any command."""


def _placeholder() -> None:
    """Stand in for a command that is not called, so it is not loaded."""
