"""The `chestx` command line as Typer knows it."""

from __future__ import annotations

from typing import Annotated

import typer

import chestx_cli
from chestx_cli.core.record import NOT_A_DEVICE

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("chestx demo --out demo",),
    "split": ("chestx split data/ --ratios 70/15/15 --seed 42",),
    "train": ("chestx train data/", "chestx train --name resnet18 --backbone resnet18 --epochs 20"),
    "sensitivity": ("chestx sensitivity --amounts 0.2,0.4,0.6,0.8",),
    "prune": ("chestx prune --method oneshot --amount 0.5", "chestx prune --method iterative --steps 3 --amount 0.2"),
    "quantize": ("chestx quantize --method dynamic", "chestx quantize --from iterative-3x20"),
    "compress": ("chestx compress --max-latency-ms 4 --max-size-mb 8 --max-drop 0.02 --time-budget 60",),
    "evaluate": (
        "chestx evaluate",
        "chestx evaluate --operating-point sensitivity=0.95 --by pathogen",
        "chestx evaluate --data other/ --name external",
    ),
    "compare": ("chestx compare baseline static-int8", "chestx compare baseline oneshot-50 --margin 0.05"),
    "benchmark": (
        "chestx benchmark --threads 1",
        "chestx benchmark --host user@device",
        "chestx benchmark --runtimes torch.compile,onnxruntime --batch-sizes 1,8,32 --duration 0.5",
    ),
    "export": ("chestx export static-int8 --out bundle/",),
    "report": ("chestx report",),
}


def app_for(command: str | None) -> typer.Typer:
    """Return the command line with one command in working order, or with all of them where None is said.

    The others are there with their names and summaries, as help and the completion of command names need them.
    """
    app = typer.Typer(
        name="chestx",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    about = f"From a folder of chest X-rays to a small, fast, honestly evaluated classifier. {NOT_A_DEVICE}"
    app.callback(help=about)(_root)
    for name, summary in chestx_cli.STAGES.items():
        if command in (name, None):
            from chestx_cli.cli.adapter import as_command

            app.command(name)(as_command(getattr(chestx_cli, name), EXAMPLES[name]))
        else:
            app.command(name, help=summary)(_not_asked_for)
    return app


def _show_version(asked: bool) -> None:
    if asked:
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
