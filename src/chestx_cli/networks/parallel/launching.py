"""Starting and restarting the processes of a training on this machine with torch's launcher."""

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
# Processes end within three seconds of a signal; after this time they are killed.
SHUTDOWN_S = 10
_STOPPED = {128 + number for number in SIGNALS}


def train_together(n: int, first: Sequence[str], again: Sequence[str], reporter: Reporter) -> None:
    """Run `chestx` with the arguments `first` in `n` processes that train together, and wait for them.

    If a process is killed, all restart from the last checkpoint with the arguments `again`, at most three times. Raises
    the error of the process that failed, Interrupted after a signal, ChestxError after the last restart.
    """
    arguments = first
    for restarts in range(MAX_RESTARTS + 1):
        failures = _run(n, arguments)
        if not failures:
            return
        loss = _what_was_lost(failures)
        if restarts == MAX_RESTARTS:
            raise ChestxError(
                f"{loss}; the training has been restarted {MAX_RESTARTS} times already",
                "the same command goes on from the last checkpoint; if the system ends processes for lack of memory, "
                "lower --batch-size or --processes",
            )
        reporter.warn(f"{loss}; all start again from the last checkpoint ({restarts + 1} of {MAX_RESTARTS} times)")
        arguments = again


def _run(n: int, arguments: Sequence[str]) -> Mapping[int, Any]:
    """Run the processes; return torch's failure descriptions of those that failed, by process number."""
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
            # Restarts are handled here: a process that failed with an error of its own would fail again.
            max_restarts=0,
            # SIGINT and SIGTERM are left to this package's handlers.
            signals_to_handle="SIGHUP",
            shutdown_timeout=SHUTDOWN_S,
            # Only this process prints the record.
            logs_specs=DefaultLogsSpecs(log_dir=folder, redirects=Std.OUT),
        )
        try:
            elastic_launch(config, sys.executable)("-P", "-m", "chestx_cli", *arguments)
        except ChildFailedError as error:
            return dict(error.failures)
        except SignalException as stop:
            raise Interrupted(stop.sigval) from None
    return {}


def _what_was_lost(failures: Mapping[int, Any]) -> str:
    """Return as text which process was killed; raises the error that ended the processes otherwise."""
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
    """Set the environment of the processes: the launcher's process id, and each one's share of the threads."""
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
    """Silence torch's launcher, whose messages this package words itself, and restore the SIGHUP handler."""
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
