"""Reporting of progress, notes and results while a command runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from chestx_cli.core.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

Advance = Callable[..., None]


class Lines(Protocol):
    """Shows work that goes on side by side, a line for each, below one that counts what has ended."""

    def show(self, name: str, doing: str, *, at: int, of: int, share: float | None) -> None:
        """Show what one of them does now: its `at`-th step of `of`, and which share of it is done, if that is known."""

    def end(self, name: str, text: str, *, failed: bool) -> None:
        """Count one that has ended; `text` says so where no lines are shown, and where it failed."""

    def left(self, seconds: float | None) -> None:
        """Take how long the rest takes; None where it is not known."""


class Reporter(Protocol):
    """Receives progress and messages of a running stage: shown in the shell, and in Python inside `reporting`."""

    def progress(self, label: str, total: int | None) -> Any:
        """Return a context manager whose value is a function to call after each finished unit of work.

        For work that cannot be counted, `total` is None and the label names the work.
        """

    def side_by_side(self, label: str, total: int, *, done: int) -> AbstractContextManager[Lines]:
        """Return a context in which work goes on side by side, of which there are `total`, and `done` have ended."""

    def note(self, text: str) -> None:
        """Report a fact that the user should know."""

    def warn(self, text: str) -> None:
        """Report a warning."""

    def command(self, line: str) -> None:
        """Report the command line of a stage that is about to run."""

    def result(self, record: Record) -> None:
        """Report the record of that stage."""


class SilentLines:
    """Ignores all lines."""

    def show(self, name: str, doing: str, *, at: int, of: int, share: float | None) -> None:
        """Show nothing."""

    def end(self, name: str, text: str, *, failed: bool) -> None:
        """Count nothing."""

    def left(self, seconds: float | None) -> None:
        """Drop a time."""


class SilentReporter:
    """Ignores every report."""

    @contextmanager
    def progress(self, label: str, total: int | None) -> Iterator[Advance]:  # noqa: ARG002 - the protocol's names
        """Count nothing."""
        yield lambda _steps=1: None

    @contextmanager
    def side_by_side(self, label: str, total: int, *, done: int) -> Iterator[Lines]:  # noqa: ARG002 - as above
        """Show nothing."""
        yield SilentLines()

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
