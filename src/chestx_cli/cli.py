"""The `chestx` command."""

from __future__ import annotations

from typing import Annotated

import typer

import chestx_cli
from chestx_cli._command import as_command
from chestx_cli.record import NOT_A_DEVICE

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("chestx demo --out demo",),
    "split": ("chestx split data/ --ratios 70/15/15 --seed 42",),
    "train": ("chestx train data/", "chestx train --name resnet18 --backbone resnet18 --epochs 20"),
    "sensitivity": ("chestx sensitivity --amounts 0.2,0.4,0.6,0.8",),
    "prune": ("chestx prune --method oneshot --amount 0.5", "chestx prune --method iterative --steps 3 --amount 0.2"),
    "quantize": ("chestx quantize --method dynamic", "chestx quantize --from iterative-3x20"),
    "evaluate": (
        "chestx evaluate",
        "chestx evaluate --operating-point sensitivity=0.95 --by pathogen",
        "chestx evaluate --data other/ --name external",
    ),
    "compare": ("chestx compare baseline static-int8", "chestx compare baseline oneshot-50 --margin 0.05"),
    "benchmark": ("chestx benchmark --device cpu", "chestx benchmark --threads 1"),
    "report": ("chestx report",),
}

app = typer.Typer(
    name="chestx",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"chestx {chestx_cli.__version__}")
        raise typer.Exit


@app.callback(help=f"From a folder of chest X-rays to a small, fast, honestly evaluated classifier. {NOT_A_DEVICE}")
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Options that belong to no command."""


for _name in chestx_cli.STAGES:
    app.command(_name)(as_command(getattr(chestx_cli, _name), EXAMPLES[_name]))


def main() -> None:
    """Run the command line."""
    app()
