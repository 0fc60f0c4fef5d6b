"""Costs of untrained networks: rounds that differ too much are timed again, and not kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from chestx_cli.compression import cost_probe
from chestx_cli.compression.cost_probe import ATTEMPTS, cost_of, time_latency
from chestx_cli.inference.runtimes import Model
from chestx_cli.inference.timing import Job, Round
from conftest import Chestx


def rounds_of(*medians_ms: float) -> list[Round]:
    return [Round(seconds={1: (ms / 1000,) * 3}) for ms in medians_ms]


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[float]]:
    """Return the medians in ms of the attempts to come, first to last; the last stays. All models have the same."""
    coming: list[Sequence[float]] = []

    def time_jobs(jobs: list[Job], rounds: int, advance: Any) -> list[list[Round]]:
        medians_ms = coming.pop(0) if len(coming) > 1 else coming[0]
        for _ in range(rounds * len(jobs)):
            advance()
        return [rounds_of(*medians_ms) for _ in jobs]

    monkeypatch.setattr(cost_probe, "time_jobs", time_jobs)
    return coming


@pytest.mark.parametrize(
    ("coming", "latency_ms", "is_rough"),
    [
        ([(5.0, 5.1, 5.0)], 5.0, False),
        ([(5.0, 9.0, 9.1), (5.0, 5.2, 5.1)], 5.1, False),
        ([(5.0, 8.0, 8.0), (5.0, 50.0, 50.0)], 8.0, True),
    ],
    ids=["quiet", "quiet at the second attempt", "never quiet"],
)
def test_the_attempt_in_which_rounds_differ_least_counts(
    attempts: list[Sequence[float]], coming: list[Sequence[float]], latency_ms: float, is_rough: bool
) -> None:
    # One more, which must not be used.
    attempts += [*coming, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)]
    steps: list[float] = []
    model = Model(path="model.onnx", kind="onnx", backbone="none", n_classes=2)
    [rounds] = time_latency([model], 32, 1, "onnxruntime", lambda step=1.0: steps.append(step))
    cost = cost_of(rounds, 1)
    assert cost.latency_ms == pytest.approx(latency_ms)
    assert cost.is_rough == is_rough
    assert len(steps) == cost_probe.ROUNDS
    assert len(attempts) == 2
    assert len(coming) <= ATTEMPTS


def test_a_busy_machine_is_told_and_its_times_are_not_kept(
    chestx: Chestx, study: Path, attempts: list[Sequence[float]]
) -> None:
    attempts.append((1.0, 9.0, 9.0))
    words = ("compress", "--study", study, "--max-size-mb", 1, "--max-drop", 1, "--threads", 1, "--criteria", "l2")
    outcome = chestx(*words)
    assert outcome.code == 0, outcome.err
    answer = " ".join(outcome.out.split())
    ran = "competed while these ran: an untrained network (the parent), baseline"
    assert ran in answer
    assert "Latencies and the front are rough; the choice is not." in answer
    assert "meets all limits on the validation images. The search" in answer
    hasty = " ".join(chestx(*words, "--max-latency-ms", 10**6).out.split())
    assert "The choice may be wrong" in hasty
    assert "meets all limits on the validation images, by NOISY times. The search" in hasty
    assert "~9" in hasty
    assert "rough, since the machine is busy" in outcome.err
    kept = list((study / "cache").rglob("cost-*.json"))
    assert not kept
    attempts[:] = [(1.0, 1.0, 1.0)]
    quiet = chestx(*words)
    assert "NOISY" not in quiet.out
    assert list((study / "cache").rglob("cost-*.json"))
