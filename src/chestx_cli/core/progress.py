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


def ignored(_steps: float = 1) -> None:
    """Count nothing: the `Advance` of a caller that shows no progress."""


class Lines(Protocol):
    """Shows concurrent tasks, one line each, below a bar that counts ended ones."""

    def show(self, name: str, doing: str, *, at: int, of: int, share: float | None) -> None:
        """Show a task's current work: step `at` of `of`, and the share of it that is done, if known."""

    def end(self, name: str, text: str, *, failed: bool) -> None:
        """Count an ended task; `text` is shown if it failed, or if no lines are shown."""

    def left(self, seconds: float | None) -> None:
        """Report the estimated time left; None if it is unknown."""


class Reporter(Protocol):
    """Receives progress and messages of a running stage: shown in the shell, and in Python inside `reporting`."""

    def progress(self, label: str, total: int | None) -> Any:
        """Return a context manager whose value is a function to call after each finished unit of work.

        For work that cannot be counted, `total` is None and the label names the work.
        """

    def side_by_side(self, label: str, total: int, *, done: int) -> AbstractContextManager[Lines]:
        """Return a context for `total` concurrent tasks, of which `done` have already ended."""

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
        """Drop an estimate."""


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
