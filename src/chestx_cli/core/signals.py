"""Signals: the first requests a stop, with a few seconds to finish the step; the second ends the process at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from types import FrameType

# The promise is five seconds; a step that is not finished by then is given up, on a busy machine a second or two later.
GRACE_S = 3.0
# A process that waits for others, which have the same signal, lets them leave first.
WAITING_S = 1.5
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A stop requested by the user or the system."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class _State:
    """The stop requested of this process; one per process, as are signal handlers."""

    installed = False
    requested: int | None = None
    deferred = 0
    extra_s = 0.0


_state = _State()


@contextmanager
def handled() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `Interrupted` inside the block, or into a request where the work defers them.

    Inside another such block, or outside the main thread, it does nothing.
    """
    if _state.installed or threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.installed = True
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    threading.Thread(target=_watch, args=(reading,), daemon=True).start()
    # The interpreter writes each signal's number there at once, even while the main thread is deep in a library.
    woken = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    before = {number: signal.signal(number, _on_signal) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(woken)
        os.close(writing)
        _state.installed, _state.requested = False, None


@contextmanager
def deferred() -> Iterator[Callable[[], int | None]]:
    """Let the block finish its step: yields a function that returns the signal that requested a stop, if one did.

    A signal that comes after the block's last look at it is obeyed when the block ends.
    """
    _state.deferred += 1
    try:
        yield requested
    finally:
        _state.deferred -= 1
    obey()


@contextmanager
def waiting_for_others() -> Iterator[None]:
    """Be given up later than the processes that the block waits for, to which it passes signals on."""
    _state.extra_s = WAITING_S
    try:
        yield
    finally:
        _state.extra_s = 0.0


def requested() -> int | None:
    """Return the signal that requested a stop, or None."""
    return _state.requested


def obey() -> None:
    """Raise `Interrupted` if a signal has arrived."""
    if _state.requested is not None:
        raise Interrupted(_state.requested)


def _on_signal(number: int, _frame: FrameType | None) -> None:
    if _state.requested is not None:
        _leave(number)
    _state.requested = number
    if not _state.deferred:
        raise Interrupted(number)
    _say(b"stopping after this step; a second signal stops at once\n")


def _watch(reading: int) -> None:
    """Give the main thread its time after the first signal, and none after the second; ends with its block."""
    with os.fdopen(reading, "rb", buffering=0) as numbers:
        first = _next_signal(numbers)
        if first is None:
            return
        given_up = threading.Timer(GRACE_S + _state.extra_s, _give_up, (first,))
        given_up.daemon = True
        given_up.start()
        second = _next_signal(numbers)
        if second is not None:
            _leave(second)
        given_up.cancel()


def _next_signal(numbers: FileIO) -> int | None:
    """Return the next SIGINT or SIGTERM of the wake-up pipe; None where it was closed."""
    while byte := numbers.read(1):
        if byte[0] in SIGNALS:
            return byte[0]
    return None


def _give_up(number: int) -> None:
    _say(b"interrupted during a step; run the same command to resume from its last checkpoint\n")
    _leave(number)


def _say(text: bytes) -> None:
    """Write to the process's own stderr at once, where it has one that is read."""
    if sys.__stderr__ is not None:
        with contextlib.suppress(OSError):
            os.write(sys.__stderr__.fileno(), text)


def _leave(number: int) -> None:
    """End the process without waiting for anything; what is on the disk is whole, as after a kill."""
    os._exit(128 + number)
