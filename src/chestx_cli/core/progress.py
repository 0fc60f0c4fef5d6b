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
    """Receives progress and messages of a running stage: shown in the shell, and in Python inside `reporting`."""

    def progress(self, label: str, total: int | None) -> Any:
        """Return a context manager whose value is a function to call after each finished unit of work.

        For work that cannot be counted, `total` is None and the label names the work.
        """

    def note(self, text: str) -> None:
        """Report a fact that the user should know."""

    def warn(self, text: str) -> None:
        """Report a warning."""

    def command(self, line: str) -> None:
        """Report the command line of a stage that is about to run."""

    def result(self, record: Record) -> None:
        """Report the record of that stage."""


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
    """Return the reporter for stages called from Python: silent, except inside `reporting`."""
    return _CURRENT.get() or SILENT


@contextmanager
def reporting(reporter: Reporter) -> Iterator[None]:
    """Send the progress of stages called within the block to `reporter`."""
    token = _CURRENT.set(reporter)
    try:
        yield
    finally:
        _CURRENT.reset(token)
