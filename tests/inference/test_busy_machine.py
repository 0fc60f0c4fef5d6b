"""How long threads wait for a processor that other programs use, as the system accounts for it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chestx_cli.core import machine
from chestx_cli.core.machine import Waiting
from chestx_cli.inference.device import chestx_bundle
from chestx_cli.inference.timing import Round, roughness_of
from conftest import MOST_WAITED


def is_reported() -> bool:
    with Waiting() as waiting:
        sum(range(10**6))
    return waiting.share is not None


on_linux = pytest.mark.skipif(not is_reported(), reason="the system does not report it")


@contextlib.contextmanager
def shared_processor() -> Iterator[None]:
    """Keep this thread on one processor, together with another program."""
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
            try:
                time.sleep(0.1)
                yield
            finally:
                other.kill()
    finally:
        os.sched_setaffinity(0, allowed)


def work(work_s: float) -> None:
    ends_s = time.thread_time() + work_s
    while time.thread_time() < ends_s:
        pass


@on_linux
def test_another_program_on_the_same_processor_is_seen() -> None:
    with shared_processor():
        before = chestx_bundle.scheduled_ns()
        with Waiting() as waiting:
            work(0.5)
        after = chestx_bundle.scheduled_ns()
    # Half, if both get the same share; more beside further programs.
    assert waiting.share is not None
    assert 0.25 < waiting.share < 1
    thread = str(threading.get_native_id())
    ran_ns, waited_ns = (after[thread][at] - before[thread][at] for at in (0, 1))
    assert waited_ns / (ran_ns + waited_ns) == pytest.approx(waiting.share, abs=0.1)


@on_linux
def test_blocks_add_up_and_what_lies_between_them_does_not_count() -> None:
    waiting = Waiting()
    with shared_processor(), waiting:
        work(0.3)
    first = waiting.share
    with shared_processor():
        work(0.5)
    assert waiting.share == first
    with waiting:
        time.sleep(0.1)
    # Idle threads do not wait.
    assert waiting.share == pytest.approx(first, abs=0.1)


def test_threads_that_begin_and_end_within_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "THREADS", tmp_path)

    def accounted(**threads: str) -> None:
        for thread, text in threads.items():
            (tmp_path / thread).mkdir(exist_ok=True)
            (tmp_path / thread / "schedstat").write_text(text)

    accounted(stays="1000 500 3", ends="9000 9000 9")
    with Waiting() as waiting:
        (tmp_path / "ends" / "schedstat").unlink()
        accounted(stays="1600 600 5", begins="200 100 1")
    assert waiting.share == pytest.approx((100 + 100) / (600 + 100 + 200 + 100))


def test_a_system_that_does_not_account_for_threads_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "THREADS", tmp_path / "none")
    with Waiting() as waiting:
        work(0.01)
    assert waiting.share is None


@pytest.mark.parametrize(
    ("shares", "spread", "said"),
    [
        ((0.02, 0.01, 0.05), 1.0, ""),
        ((None, None, None), 1.0, ""),
        ((0.3, 0.4, 0.01), 1.0, "NOISY: the model waited 30% of its time for a processor: do not"),
        ((0.01, 0.01, 0.01), 2.0, "NOISY: the rounds differ by a factor of 2.0: do not"),
        ((0.4, 0.4, 0.4), 2.0, "NOISY: the rounds differ by a factor of 2.0, and the model waited 40%"),
    ],
)
def test_a_bundle_says_when_its_times_are_noisy_by_the_rule_of_chestx(
    shares: tuple[float | None, ...], spread: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chestx_cli.inference.timing.MOST_WAITED", MOST_WAITED)
    medians_s = (0.01, 0.01, 0.01 * spread)
    rounds: list[chestx_bundle.Round] = [
        {
            "seconds": {"1": [median_s] * 3},
            "peak_bytes": None,
            "runtime_bytes": None,
            "model_sha256": "0" * 64,
            "threads": 1,
            "environment": {},
            "waited_share": share,
        }
        for share, median_s in zip(shares, medians_s, strict=True)
    ]
    sentences = chestx_bundle._warnings(rounds, [1])  # a script, which has no other interface
    assert sentences[0].startswith(said) if said else not sentences, sentences
    here = [
        Round(seconds={1: (median_s,) * 3}, waited_share=share)
        for share, median_s in zip(shares, medians_s, strict=True)
    ]
    assert (roughness_of(here) > 1) == bool(said)
