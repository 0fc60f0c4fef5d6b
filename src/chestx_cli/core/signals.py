"""Signals: the first one requests a stop, with a few seconds to finish the step; the second ends the process."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from types import FrameType

# Promised: a stop within five seconds. On a busy machine an unfinished step is aborted a second or two after this.
GRACE_S = 3.0
# Extra time for a process that waits for others, which received the same signal and should end first.
WAITING_S = 1.5
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A stop requested by the user or the system."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class _State:
    """The requested stop; one state per process, since signal handlers are per process."""

    installed = False
    requested: int | None = None
    deferred = 0
    extra_s = 0.0


_state = _State()


@contextmanager
def handled() -> Iterator[None]:
    """Raise `Interrupted` for SIGINT and SIGTERM inside the block; within `deferred` they only set a request.

    Does nothing inside another such block, or outside the main thread.
    """
    if _state.installed or threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.installed = True
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    threading.Thread(target=_watch, args=(reading,), daemon=True).start()
    # The interpreter writes each signal's number there at once, even while the main thread is inside a library call.
    previous_fd = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    previous_handlers = {number: signal.signal(number, _on_signal) for number in SIGNALS}
    previous_hook = sys.unraisablehook
    sys.unraisablehook = functools.partial(_on_unraisable, previous_hook)
    try:
        yield
    finally:
        sys.unraisablehook = previous_hook
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous_fd)
        os.close(writing)
        _state.installed, _state.requested = False, None


@contextmanager
def deferred() -> Iterator[Callable[[], int | None]]:
    """Let the block finish its step; yields a function that returns the signal that requested a stop, or None.

    A signal that arrives after the last call of that function takes effect when the block ends.
    """
    _state.deferred += 1
    try:
        yield requested
    finally:
        _state.deferred -= 1
    obey()


@contextmanager
def waiting_for_others() -> Iterator[None]:
    """Extend the grace period, for a block that passes signals on to other processes and waits for their end."""
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


def _on_unraisable(report: Callable[[sys.UnraisableHookArgs], object], unraisable: sys.UnraisableHookArgs) -> None:
    """Report an exception that a callback of a library could not raise, unless it is a stop, which `obey` raises."""
    if not isinstance(unraisable.exc_value, Interrupted):
        report(unraisable)


def _watch(reading: int) -> None:
    """Grant the main thread its grace period after the first signal, none after the second; ends with the block."""
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
    """Return the next SIGINT or SIGTERM from the wake-up pipe; None once it is closed."""
    while byte := numbers.read(1):
        if byte[0] in SIGNALS:
            return byte[0]
    return None


def _give_up(number: int) -> None:
    _say(b"interrupted during a step; run the same command to resume from its last checkpoint\n")
    _leave(number)


def _say(text: bytes) -> None:
    """Write to the process's own stderr at once; errors are ignored."""
    if sys.__stderr__ is not None:
        with contextlib.suppress(OSError):
            os.write(sys.__stderr__.fileno(), text)


def _leave(number: int) -> None:
    """End the process without cleaning up; files stay consistent, as after a kill."""
    os._exit(128 + number)
