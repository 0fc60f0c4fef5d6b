"""Progress for Python: the shell's progress bars and messages in a terminal, a script or a notebook."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from chestx_cli.core.progress import reporting

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def progress() -> Iterator[None]:
    """Show progress bars, notes and warnings of all commands called inside the block, on stderr.

    In a notebook the bars need ipywidgets: `pip install 'chestx-cli[notebook]'`.
    """
    from rich.console import Console

    from chestx_cli.cli.console import ConsoleReporter

    err = Console(stderr=True, highlight=False)
    with reporting(ConsoleReporter(err, err, show_results=False)):
        yield
