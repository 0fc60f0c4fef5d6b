"""How long threads wait for a processor that other programs use, as the system accounts for it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chestx_cli.core import machine
from chestx_cli.inference.device import chestx_bundle

Scheduled = Callable[[], tuple[float, float] | None]
on_linux = pytest.mark.skipif(not machine.THREADS.exists(), reason="the system does not report it")
sources = pytest.mark.parametrize("scheduled_s", [machine.scheduled_s, chestx_bundle.scheduled_s])


@contextlib.contextmanager
def one_processor(*, shared: bool) -> Iterator[None]:
    """Keep this thread on one processor, for itself or shared with another program."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    program = "while True: pass" if shared else "input()"
    other = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
    try:
        time.sleep(0.1)
        yield
    finally:
        other.kill()
        other.communicate()
        os.sched_setaffinity(0, allowed)


def waited_share(scheduled_s: Scheduled, work_s: float) -> float:
    """Compute until this thread has run for a time, and return the share of all that it waited."""
    before, ends_s = scheduled_s(), time.thread_time() + work_s
    while time.thread_time() < ends_s:
        pass
    after = scheduled_s()
    assert before is not None
    assert after is not None
    ran_s, waited_s = after[0] - before[0], after[1] - before[1]
    assert ran_s == pytest.approx(work_s, rel=0.5)
    return waited_s / (ran_s + waited_s)


@on_linux
@sources
def test_another_program_on_the_same_processor_is_seen(scheduled_s: Scheduled) -> None:
    with one_processor(shared=False):
        alone = waited_share(scheduled_s, 0.5)
    with one_processor(shared=True):
        beside = waited_share(scheduled_s, 0.5)
    # Half, if both get the same share; less if other programs took the processor before, too.
    assert beside > 0.25
    assert beside > alone


@on_linux
@sources
def test_idle_threads_do_not_wait(scheduled_s: Scheduled) -> None:
    before = scheduled_s()
    time.sleep(0.3)
    after = scheduled_s()
    assert before is not None
    assert after is not None
    assert after[1] - before[1] < 0.1


def test_a_system_that_does_not_account_for_threads_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "THREADS", tmp_path / "none")
    assert machine.scheduled_s() is None
