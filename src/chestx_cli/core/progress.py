"""Reporting of progress, notes and results while a command runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from chestx_cli.core.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

Advance = Callable[..., None]


class Reporter(Protocol):
    """Who is told what a stage does while it runs; the shell draws it, Python callers hear nothing."""

    def progress(self, label: str, total: int) -> Any:
        """Return a context manager whose value is called once per finished unit of work."""

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
    def progress(self, label: str, total: int) -> Iterator[Advance]:  # noqa: ARG002 - the protocol's names
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
