"""Executor on this machine: several cells at a time, each in its own process with its own processors."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

from chestx_cli.cells.processes import OnEnd, OnEvent, run_cell, stop
from chestx_cli.cells.steps import CellFailure, StudyCell
from chestx_cli.core.signals import waiting_for_others


def make_cells(cells: Sequence[StudyCell], *, module: str, jobs: int, on_event: OnEvent, on_end: OnEnd) -> None:
    """Run cells, at most `jobs` at a time, each in a process that runs `module`; an `Executor`."""
    jobs = min(jobs, len(cells))
    shares = _shares(jobs)
    lock = threading.Lock()
    alive: set[subprocess.Popen[bytes]] = set()

    def work(cell: StudyCell) -> CellFailure | None:
        with lock:
            processors = shares.pop()
        try:
            return run_cell(cell, module=module, processors=processors, on_event=on_event, alive=alive)
        finally:
            with lock:
                shares.append(processors)

    with ThreadPoolExecutor(jobs) as pool, waiting_for_others():
        left = {pool.submit(work, cell): cell for cell in cells}
        try:
            while left:
                ended, _ = wait(left, return_when=FIRST_COMPLETED)
                for one in ended:
                    on_end(left.pop(one), one.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            stop(alive)
            raise


def _shares(jobs: int) -> list[tuple[int, ...]]:
    """Return the processors of each process; if they cannot be divided evenly, neighbours share one."""
    every = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    ends = [len(every) * job / jobs for job in range(jobs + 1)]
    return [tuple(every[int(start) : math.ceil(end)]) for start, end in itertools.pairwise(ends)]
