"""The process's standard streams: they accept any text in any encoding, and failed writes raise OutputError."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING

from chestx_cli.core.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator

REPLACING = "chestx.replace"
# Replacements for characters missing from stdout's encoding; any other becomes a question mark.
_REPLACEMENTS = {
    "–": "-",
    "−": "-",
    "×": "x",
    "·": ".",
    "…": "...",
    "±": "+-",
    "→": "->",
    "Δ": "d",
    "°": " deg",
    "✓": "+",
    "✗": "x",
    "●": "*",
    "○": "o",
}
_REMEDY = "the results are kept: run the same command again with a writable stdout"


def prepare() -> None:
    """Make stdout and stderr writable in any encoding, and reserve the file descriptors of closed streams.

    Of several training processes started by torch's launchers only the first prints; with --debug all do.
    """
    # Otherwise the next opened file would get a closed stream's descriptor, and libraries would print into it.
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            _open_nothing_at(number)
    if os.environ.get("TORCHELASTIC_RUN_ID") and os.environ.get("RANK") != "0" and "--debug" not in sys.argv:
        _open_nothing_at(1)
        _open_nothing_at(2)
    codecs.register_error(REPLACING, _replaced)
    # sys.stdout is None if it was closed at start; any other object is not the process's own stream.
    if sys.stdout is None:
        sys.stdout = _ClosedStdout()
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = _Stdout(sys.stdout)
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = _Stderr(sys.stderr)


def _open_nothing_at(number: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    if nothing != number:
        os.dup2(nothing, number)
        os.close(nothing)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_REPLACEMENTS.get(character, "?") for character in text), error.end


class _Stdout(io.TextIOWrapper):
    """A stdout that replaces characters missing from its encoding, and raises OutputError if a write fails."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(
            stream.buffer, encoding=stream.encoding, errors=REPLACING, line_buffering=stream.line_buffering
        )
        self._refusal = ""

    def write(self, text: str) -> int:
        if self._refusal:
            raise OutputError(self._refusal, _REMEDY)
        with self._refused():
            return super().write(text)

    def flush(self) -> None:
        with self._refused():
            super().flush()

    @contextlib.contextmanager
    def _refused(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            # Otherwise flushing the buffer would fail again when the interpreter exits.
            _open_nothing_at(self.fileno())
            self._refusal = f"cannot write to stdout: {error.strerror or error}"
            raise OutputError(self._refusal, _REMEDY) from error


class _ClosedStdout(io.TextIOBase):
    """A stdout that was closed before the process started."""

    def write(self, text: str) -> int:  # noqa: ARG002 - nothing is done with it
        raise OutputError("cannot write to stdout: it is closed", _REMEDY)


class _Stderr(io.TextIOWrapper):
    """A stderr that ignores failed writes: a message that nobody reads must not end the work."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(stream.buffer, encoding=stream.encoding, errors="backslashreplace", line_buffering=True)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()
