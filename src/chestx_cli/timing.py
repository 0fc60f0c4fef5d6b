"""Timing models: each in a process of its own, in interleaved rounds, one process at work at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from chestx_cli.errors import ChestxError
from chestx_cli.runtimes import RUNTIMES, Compute, Model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import numpy.typing as npt

WARMUP_CALLS = 5
MIN_CALLS = 3


@dataclass(frozen=True, kw_only=True)
class Job:
    """One model under one runtime, and what to time it on."""

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
    """The durations of the calls of one round, in seconds, by batch size."""

    seconds: dict[int, tuple[float, ...]]


def time_jobs(jobs: Sequence[Job], rounds: int, advance: Callable[[], None]) -> list[list[Round]]:
    """Return the rounds of each job; in every round each job has its turn, so that drift of the machine hits all alike.

    Raises ChestxError where a job's process fails.
    """
    found: list[list[Round]] = [[] for _ in jobs]
    with ExitStack() as stack:
        workers = [stack.enter_context(_Worker(job)) for job in jobs]
        for _ in range(rounds):
            for worker, results in zip(workers, found, strict=True):
                results.append(worker.run_round())
                advance()
    return found


class _Worker:
    """A child process that holds one opened model and times a round whenever it is asked to."""

    def __init__(self, job: Job) -> None:
        self.job = job
        # A file, not a pipe: nobody reads it while the child works.
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads)}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "chestx_cli.timing", json.dumps(dataclasses.asdict(job))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment,
        )

    def __enter__(self) -> _Worker:
        # Opening and warming up happens while no other process is measured.
        self._receive()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def run_round(self) -> Round:
        assert self.process.stdin is not None  # noqa: S101 - asked for above
        # A child that has died is told of by its silence below.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("round\n")
            self.process.stdin.flush()
        answer = self._receive()
        return Round(seconds={int(batch): tuple(seconds) for batch, seconds in answer.items()})

    def _receive(self) -> dict[str, list[float]]:
        assert self.process.stdout is not None  # noqa: S101 - asked for above
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            message = self.errors.read().strip().splitlines()
            reason = message[-1] if message else f"its process ended with code {self.process.returncode}"
            raise ChestxError(
                f"{self.job.model.path} cannot be timed under {self.job.runtime}: {reason}",
                "check that there is memory enough, and that the runtime works",
            )
        answer: dict[str, list[float]] = json.loads(line)
        return answer


def time_calls(compute: Compute, inputs: npt.NDArray[np.float32], duration_s: float) -> list[float]:
    """Return the duration of each call in seconds, for at least `duration_s` and three calls."""
    found: list[float] = []
    deadline_s = time.perf_counter() + duration_s
    while len(found) < MIN_CALLS or time.perf_counter() < deadline_s:
        started_s = time.perf_counter()
        compute(inputs)
        found.append(time.perf_counter() - started_s)
    return found


def serve(job: Job, requests: IO[str], answers: IO[str]) -> None:
    """Open the job's model, warm up, then time one round for every line that is read."""
    import numpy as np

    compute = RUNTIMES[job.runtime].open(job.model, job.threads, job.device)
    rng = np.random.default_rng(job.seed)
    shapes = {batch: (batch, 3, job.image_size_px, job.image_size_px) for batch in job.batch_sizes}
    inputs = {batch: rng.standard_normal(shape, dtype=np.float32) for batch, shape in shapes.items()}
    for batch in job.batch_sizes:
        for _ in range(WARMUP_CALLS):
            compute(inputs[batch])
    _answer(answers, {})
    for _ in requests:
        _answer(answers, {str(batch): time_calls(compute, inputs[batch], job.duration_s) for batch in job.batch_sizes})


def _answer(answers: IO[str], document: dict[str, list[float]]) -> None:
    answers.write(json.dumps(document) + "\n")
    answers.flush()


def _job_of(document: dict[str, Any]) -> Job:
    return Job(
        **{
            **document,
            "model": Model(**document["model"]),
            "batch_sizes": tuple(document["batch_sizes"]),
        }
    )


if __name__ == "__main__":
    serve(_job_of(json.loads(sys.argv[1])), sys.stdin, sys.stdout)
