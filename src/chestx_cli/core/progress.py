"""Reporting of progress, notes and results while a command runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from chestx_cli.core.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

Advance = Callable[..., None]


class Reporter(Protocol):
    """Receives the progress of a stage while it runs; the shell draws it, Python callers request it."""

    def progress(self, label: str, total: int | None) -> Any:
        """Return a context manager whose value is called once per finished unit of work.

        Work that cannot be counted has no total, and a label that names what is waited for.
        """

    def note(self, text: str) -> None:
        """Take a fact that the user should know."""

    def warn(self, text: str) -> None:
        """Take a warning."""

    def command(self, line: str) -> None:
        """Take the command that a stage is about to run as a user would type it."""

    def result(self, record: Record) -> None:
        """Take the record of such a command."""


class SilentReporter:
    """Ignores every report."""

    @contextmanager
    def progress(self, label: str, total: int | None) -> Iterator[Advance]:  # noqa: ARG002 - the protocol's names
        """Count nothing."""
        yield lambda _steps=1: None

    def note(self, text: str) -> None:
        """Drop a note."""

    def warn(self, text: str) -> None:
        """Drop a warning."""

    def command(self, line: str) -> None:
        """Drop a command line."""

    def result(self, record: Record) -> None:
        """Drop a record."""


SILENT = SilentReporter()

_CURRENT: ContextVar[Reporter | None] = ContextVar("reporter", default=None)


def current_reporter() -> Reporter:
    """Return what shows the progress of stages called from Python: nothing, unless within `reporting`."""
    return _CURRENT.get() or SILENT


@contextmanager
def reporting(reporter: Reporter) -> Iterator[None]:
    """Show the progress of the stages that are called within, by `reporter`."""
    token = _CURRENT.set(reporter)
    try:
        yield
    finally:
        _CURRENT.reset(token)
