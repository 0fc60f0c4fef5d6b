"""Timing of models in interleaved rounds, each in a new process, one process at a time."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chestx_cli.core.errors import ChestxError
from chestx_cli.core.machine import Waiting, energy_counters, read_energy_uj, resident_bytes, used_energy_j
from chestx_cli.inference.runtimes import RUNTIMES, Compute, Model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import numpy.typing as npt

    from chestx_cli.core.record import Document

# Warm-up ends after this many calls or half the measurement time. The first call lays out memory and weights; the
# second is as fast as all others.
WARMUP_CALLS = 5
MIN_CALLS = 3
# A model whose rounds differ by more than this factor, or whose threads wait for a processor for more than this share
# of their time, was not measured on an idle machine. On an idle one they wait for a hundredth, beside one other program
# on two processors for a third to a half.
MOST_SPREAD, MOST_WAITED = 1.5, 0.1
BUSY = "the machine was busy, or its threads competed"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to time: a model under a runtime, with device, threads and input; batch sizes are timed in order."""

    model: Model
    runtime: str
    device: str
    threads: int
    image_size_px: int
    batch_sizes: tuple[int, ...]
    duration_s: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Round:
    """Durations of a round's calls in seconds by batch size, and the memory of its process in bytes.

    runtime_bytes: memory after importing the runtime, before opening the model. Both memory values are None if the
    system does not report them. joules: energy of the processor per call, by batch size; empty if the system does not
    report it. waited_share: share of their time that the threads waited for a processor, idle ones not counted; None if
    the system does not report it.
    """

    seconds: dict[int, tuple[float, ...]]
    peak_bytes: int | None = None
    runtime_bytes: int | None = None
    joules: dict[int, float] = field(default_factory=dict)
    waited_share: float | None = None


def time_jobs(jobs: Sequence[Job], rounds: int, advance: Callable[[], None]) -> list[list[Round]]:
    """Time jobs and return the rounds of each; in every round, each job runs in a new process.

    Effects that differ between processes, such as memory placement, thus vary over rounds. Every second round runs in
    reverse order, so that drift of the machine affects all jobs equally. Raises ChestxError if a process fails.
    """
    rounds_of_jobs: list[list[Round]] = [[] for _ in jobs]
    for number in range(rounds):
        turns = list(zip(jobs, rounds_of_jobs, strict=True))
        for job, results in turns if number % 2 == 0 else reversed(turns):
            results.append(time_round(job))
            advance()
    return rounds_of_jobs


def spread_of(rounds: Sequence[Round]) -> float:
    """Return the ratio of the largest to the smallest median latency of a model's rounds, at the smallest batch."""
    batch = min(rounds[0].seconds)
    medians_s = [statistics.median(timing.seconds[batch]) for timing in rounds]
    return max(medians_s) / min(medians_s)


def waited_share_of(rounds: Sequence[Round]) -> float | None:
    """Return the median over rounds of the share of time that threads waited for a processor; None if not reported."""
    shares = [timing.waited_share for timing in rounds if timing.waited_share is not None]
    return statistics.median(shares) if shares else None


def is_busy(waited_share: float | None) -> bool:
    """Return whether threads that waited for this share of their time show a busy machine; not if it is unknown."""
    return waited_share is not None and waited_share > MOST_WAITED


def roughness_of(rounds: Sequence[Round]) -> float:
    """Return how far a model's rounds are from those of an idle machine; above 1 their times must not be quoted."""
    return max(spread_of(rounds) / MOST_SPREAD, (waited_share_of(rounds) or 0.0) / MOST_WAITED)


def time_round(job: Job) -> Round:
    """Time one round of a job in a new process, which opens the model, warms up, measures and ends.

    Raises ChestxError with the runtime's message if the process fails.
    """
    finished = subprocess.run(
        [sys.executable, "-P", "-m", "chestx_cli.inference.timing", json.dumps(dataclasses.asdict(job))],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(job.threads)},
    )
    lines = finished.stdout.strip().splitlines()
    answer: dict[str, Any] = json.loads(lines[-1]) if finished.returncode == 0 and lines else {}
    if "seconds" not in answer:
        reason = answer.get("failed") or f"its process ended with code {finished.returncode}"
        raise ChestxError(
            f"{job.model.path} cannot be timed under {job.runtime}: {reason}",
            "check that there is enough memory, and that the runtime works",
        )
    return Round(
        seconds={int(batch): tuple(seconds) for batch, seconds in answer["seconds"].items()},
        peak_bytes=answer["peak_bytes"],
        runtime_bytes=answer["runtime_bytes"],
        joules={int(batch): joules for batch, joules in answer["joules"].items()},
        waited_share=answer["waited_share"],
    )


def time_calls(compute: Compute, inputs: npt.NDArray[np.float32], duration_s: float) -> list[float]:
    """Return the seconds of each call on inputs [N, 3, H, W], of at least three calls and `duration_s` in all."""
    durations_s: list[float] = []
    deadline_s = time.perf_counter() + duration_s
    while len(durations_s) < MIN_CALLS or time.perf_counter() < deadline_s:
        started_s = time.perf_counter()
        compute(inputs)
        durations_s.append(time.perf_counter() - started_s)
    return durations_s


def _warm_up(compute: Compute, inputs: npt.NDArray[np.float32], duration_s: float) -> None:
    deadline_s = time.perf_counter() + duration_s / 2
    for _ in range(WARMUP_CALLS):
        compute(inputs)
        if time.perf_counter() > deadline_s:
            return


def measure(job: Job) -> Round:
    """Open a job's model in this process, warm up, and return a round."""
    import numpy as np

    runtime = RUNTIMES[job.runtime]
    runtime.load()
    runtime_bytes = resident_bytes("VmRSS")
    compute = runtime.open(job.model, job.threads, job.device)
    rng = np.random.default_rng(job.seed)
    seconds, joules = {}, {}
    waiting = Waiting()
    counters = energy_counters()
    for batch in job.batch_sizes:
        inputs = rng.standard_normal((batch, 3, job.image_size_px, job.image_size_px), dtype=np.float32)
        _warm_up(compute, inputs, job.duration_s)
        before_uj = read_energy_uj(counters)
        with waiting:
            seconds[batch] = tuple(time_calls(compute, inputs, job.duration_s))
        if counters:
            joules[batch] = used_energy_j(counters, before_uj) / len(seconds[batch])
    return Round(
        seconds=seconds,
        peak_bytes=resident_bytes("VmHWM"),
        runtime_bytes=runtime_bytes,
        joules=joules,
        waited_share=waiting.share,
    )


def _job_of(document: Document) -> Job:
    return Job(
        **{
            **document,
            "model": Model(**document["model"]),
            "batch_sizes": tuple(document["batch_sizes"]),
        }
    )


def main(document: str) -> None:
    """Time a job given as JSON; write the round, or the reason of a failure, as the last line of stdout."""
    try:
        answer: dict[str, Any] = dataclasses.asdict(measure(_job_of(json.loads(document))))
    except Exception as error:
        # The first line alone, since compilers append pages of advice.
        answer = {"failed": next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
