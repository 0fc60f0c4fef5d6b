"""The processes of a training on this machine, started and started again by torch's launcher."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from chestx_cli.core.errors import LAUNCHER, ChestxError, LostRankError, left_error
from chestx_cli.core.machine import available_threads
from chestx_cli.core.signals import SIGNALS, Interrupted, waiting_for_others

if TYPE_CHECKING:
    from chestx_cli.core.progress import Reporter

MAX_RESTARTS = 3
# The processes give themselves three seconds after a signal; then they are killed.
SHUTDOWN_S = 10
_STOPPED = {128 + number for number in SIGNALS}


def train_together(n: int, first: Sequence[str], again: Sequence[str], reporter: Reporter) -> None:
    """Run `chestx` with some words in `n` processes that train together, and wait for their end.

    Where one is killed, all start again from the last checkpoint with the words `again`, at most three times. Raises
    the error of the process that failed, Interrupted, ChestxError.
    """
    words = first
    for restarts in range(MAX_RESTARTS + 1):
        failures = _run(n, words)
        if not failures:
            return
        what = _what_was_lost(failures)
        if restarts == MAX_RESTARTS:
            raise ChestxError(
                f"{what}; the training was started again {MAX_RESTARTS} times already",
                "the same command goes on from the last checkpoint; where the system kills for want of memory, lower "
                "--batch-size or --processes",
            )
        reporter.warn(f"{what}; all start again from the last checkpoint ({restarts + 1} of {MAX_RESTARTS} times)")
        words = again


def _run(n: int, words: Sequence[str]) -> Mapping[int, Any]:
    """Return how the processes ended that have failed, by number, as torch's launcher describes it."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory(prefix="chestx-train-") as folder, _environment(n), _quiet(), waiting_for_others():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=n,
            run_id="chestx",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            # Here, since a process that fails by an error of its own would fail again.
            max_restarts=0,
            # SIGINT and SIGTERM stay with this package's own handlers.
            signals_to_handle="SIGHUP",
            shutdown_timeout=SHUTDOWN_S,
            # This process shows the record.
            logs_specs=DefaultLogsSpecs(log_dir=folder, redirects=Std.OUT),
        )
        try:
            elastic_launch(config, sys.executable)("-P", "-m", "chestx_cli", *words)
        except ChildFailedError as error:
            return dict(error.failures)
        except SignalException as stop:
            raise Interrupted(stop.sigval) from None
    return {}


def _what_was_lost(failures: Mapping[int, Any]) -> str:
    """Return in words which process was killed; raises what ended the processes otherwise."""
    for number, failure in sorted(failures.items()):
        if failure.exitcode < 0 and -failure.exitcode not in SIGNALS:
            return f"process {number} was ended by {signal.Signals(-failure.exitcode).name}"
    errors = [left_error(failure.error_file_data) for _, failure in sorted(failures.items())]
    for error in errors:
        if error is not None and not isinstance(error, LostRankError):
            raise error
    if any(isinstance(error, LostRankError) for error in errors):
        return "the processes lost each other"
    codes = {128 - failure.exitcode if failure.exitcode < 0 else failure.exitcode for failure in failures.values()}
    if stopped := codes & _STOPPED:
        raise Interrupted(min(stopped) - 128)
    raise ChestxError(f"the processes of the training ended with {', '.join(map(str, sorted(codes)))}")


@contextmanager
def _environment(n: int) -> Iterator[None]:
    """Set what the processes inherit: whom they report to, and as many threads as there are processors for each."""
    share = max(1, available_threads() // n)
    set_to = {LAUNCHER: str(os.getpid()), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(share))}
    before = {name: os.environ.get(name) for name in set_to}
    os.environ.update(set_to)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's launcher from logging what this package says itself, and give SIGHUP back its handler."""
    log = logging.getLogger("torch.distributed.elastic")
    level = log.level
    log.setLevel(logging.CRITICAL)
    handler = signal.getsignal(signal.SIGHUP)
    try:
        yield
    finally:
        log.setLevel(level)
        if signal.getsignal(signal.SIGHUP) is not handler:
            signal.signal(signal.SIGHUP, handler)
