"""Signals: the first asks a command to stop, and it has a few seconds to leave things in order; the second stops it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# The promise is five seconds; a step that a slow machine cannot finish in time is given up.
GRACE_S = 4.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The user or the system asked the command to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class _State:
    """What has been asked of this process; there is one, as there is one set of signal handlers."""

    asked: int | None = None
    deferred = 0


_state = _State()


@contextmanager
def handled() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `Interrupted` inside the block, or into a request where the work defers them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _on_signal) for number in SIGNALS}
    try:
        yield
    finally:
        _state.asked = None
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Let the block finish its step: yields a function that tells whether to stop; the block then calls `obey`."""
    _state.deferred += 1
    try:
        yield lambda: _state.asked is not None
    finally:
        _state.deferred -= 1


def obey() -> None:
    """Raise `Interrupted` where a signal has come."""
    if _state.asked is not None:
        raise Interrupted(_state.asked)


def _on_signal(number: int, _frame: FrameType | None) -> None:
    if _state.asked is not None:
        _leave(number)
    _state.asked = number
    watchdog = threading.Timer(GRACE_S, _give_up, (number,))
    watchdog.daemon = True
    watchdog.start()
    if not _state.deferred:
        raise Interrupted(number)
    os.write(sys.stderr.fileno(), b"stopping after this step; a second signal stops at once\n")


def _give_up(number: int) -> None:
    said = b"interrupted in the middle of a step; the same command goes on from its last checkpoint\n"
    os.write(sys.stderr.fileno(), said)
    _leave(number)


def _leave(number: int) -> None:
    """End the process without waiting for anything; what is on the disk is whole, as after a kill."""
    os._exit(128 + number)
