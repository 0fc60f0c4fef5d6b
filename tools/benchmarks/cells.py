"""A whole study over folds and seeds; each cell is trained, compressed and tested separately with the user's commands.

    python -m tools.benchmarks.cells --data DATA --weights FILE --work FOLDER --jobs 4

All seeds share the folds; the seed applies to training, fine-tuning and calibration. The variants, the endpoint and the
margins are written to `plan.txt` before the first test image is predicted; a folder with a different plan is refused.
Existing variants in `--work` are reused. `--docs` evaluates the predictions and writes the tables; without `--data` it
needs no model and runs on any machine.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import os
import shlex
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from chestx_cli.core.files import write_atomic
from chestx_cli.records.variant import BASELINE
from tools.benchmarks.cell_tables import MARGINS, PRIMARY, judged, tables
from tools.harness.documents import insert
from tools.harness.machine import describe
from tools.harness.processes import chestx, run_process, say

ROOT = Path(__file__).parents[2]
SHORT = ("--finetune-epochs", 8, "--distill", "--lr", 3e-4)
LONG = ("--finetune-epochs", 24, "--distill", "--teacher-weight", 0.9, "--lr", 3e-4)
STRUCTURED = ("prune", "--method", "structured", "--amount", 0.75)
ZEROS = (0.3, 0.5, 0.7)

# Command of each variant, parents first. Keys that differ from the default names are set by --name.
STEPS: dict[str, tuple[object, ...]] = {
    **{f"oneshot-{100 * zeros:g}": ("prune", "--method", "oneshot", "--amount", zeros) for zeros in ZEROS},
    **{
        f"oneshot-{100 * zeros:g}-plain": ("prune", "--method", "oneshot", "--amount", zeros, "--no-recalibrate")
        for zeros in ZEROS
    },
    "iterative-3x20": ("prune", "--method", "iterative", "--steps", 3, "--amount", 0.2),
    "structured-75": (*STRUCTURED, *SHORT),
    "structured-75-long": (*STRUCTURED, *LONG, "--name", "structured-75-long"),
    "dynamic-int8": ("quantize", "--method", "dynamic"),
    "static-int8": ("quantize", "--method", "static"),
    "structured-75-static-int8": ("quantize", "--method", "static", "--from", "structured-75"),
    "structured-75-long-static-int8": ("quantize", "--method", "static", "--from", "structured-75-long"),
}


def plan_of(arguments: argparse.Namespace, train: Sequence[object]) -> str:
    """Return the text of the plan: what will be made and how it will be judged."""
    command_words = (train, *(STEPS[name] for name in arguments.variants))
    commands = [" ".join(str(word) for word in words) for words in command_words]
    folds, seeds, primary = arguments.folds, arguments.seeds, arguments.primary
    return "\n".join(
        [
            f"Images: {folds} folds by patient (chestx split --folds {folds}); every image is tested once per seed.",
            f"Seeds of training, fine-tuning and calibration: {', '.join(map(str, seeds))}; all seeds share the folds.",
            "Commands of every cell (fold and seed), each with --seed of the cell:",
            *(f"  chestx {command}" for command in commands),
            "Test images are predicted once per cell, by a final chestx evaluate at the default operating point.",
            f"Endpoint: accuracy compared with {BASELINE} of the same cell, pooled over the folds, per seed;",
            f"  margin {MARGINS.endpoint}; guards and their margins: sensitivity ({MARGINS.sensitivity}), specificity",
            f"  ({MARGINS.specificity}), AUROC within folds ({MARGINS.auroc}); methods: docs/statistics.md.",
            f"Secondary analysis: AUROC alone; the lower end of its 95 % interval must be above -{MARGINS.auroc}.",
            f"Primary variant: {primary}. All others are secondary; their verdicts are also reported with Holm's",
            "  correction over all variants of a seed.",
            "Noise: the same comparison between two trainings that differ only in the seed.",
            "",
        ]
    )


def declare(work: Path, plan: str) -> str:
    """Write the plan and its SHA-256 before any test image is predicted; return the SHA-256.

    Raises SystemExit if the folder has a different plan.
    """
    path = work / "plan.txt"
    if path.exists() and path.read_text(encoding="utf-8") != plan:
        raise SystemExit(f"{path} is a different plan: choose another folder")
    sha256 = hashlib.sha256(plan.encode()).hexdigest()
    if not path.exists():
        write_atomic(path, plan)
        write_atomic(work / "plan.sha256", f"{sha256}  plan.txt\n")
        write_atomic(work / "machine.json", json.dumps(describe(), indent=1) + "\n")
    return sha256


def make_cell(study: Path, seed: int, train: Sequence[object], arguments: argparse.Namespace) -> None:
    """Make and test all variants of one cell; existing ones are reused."""
    if (study / "variants" / arguments.primary / "evaluation.test.json").exists():
        return
    started_s = time.perf_counter()
    cell = ("--study", study, "--seed", seed)
    computing = ("--device", arguments.device)
    run_process(chestx(*train, *computing, *cell))
    for words in (STEPS[name] for name in arguments.variants):
        run_process(chestx(*words, *(computing if words[0] == "prune" else ()), *cell))
    run_process(chestx("evaluate", "--study", study))
    say(f"{study.parent.name}/{study.name}: {time.perf_counter() - started_s:.0f} s")


class Processors:
    """Assigns each worker thread its own processors, which its child processes inherit."""

    def __init__(self, jobs: int) -> None:
        processors = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        # If the processors do not divide evenly, adjacent shares overlap by one.
        ends = [len(processors) * job / jobs for job in range(jobs + 1)]
        self._shares = [processors[int(start) : math.ceil(end)] for start, end in itertools.pairwise(ends)]
        self._lock = threading.Lock()

    def take(self) -> None:
        """Pin the calling thread to the next share of processors."""
        with self._lock:
            share = self._shares.pop(0)
        if share:
            os.sched_setaffinity(0, share)


def make_all(work: Path, data: Path, arguments: argparse.Namespace, train: Sequence[object]) -> None:
    """Split the images once per seed, then make all cells, `--jobs` at a time."""
    here = arguments.here or arguments.seeds
    for seed in here:
        root = work / f"seed-{seed}"
        if not (root / "folds.json").exists():
            run_process(chestx("split", data, "--folds", arguments.folds, "--study", root))
    cells = [(work / f"seed-{seed}" / f"fold-{fold}", seed) for seed in here for fold in range(1, arguments.folds + 1)]
    with ThreadPoolExecutor(arguments.jobs, initializer=Processors(arguments.jobs).take) as pool:
        futures = [pool.submit(make_cell, study, seed, train, arguments) for study, seed in cells]
        for future in futures:
            future.result()
    for seed in here:
        folder = work / f"seed-{seed}"
        shown = run_process(chestx("compare", BASELINE, arguments.primary, "--study", folder))
        write_atomic(folder / f"compare-{arguments.primary}.txt", shown.out)


def main(words: Sequence[str] | None = None) -> None:
    """Make missing cells and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, help="folder of class folders; without it no cell is made")
    parser.add_argument("--weights", default="imagenet", help="initial weights: imagenet, none, or a safetensors file")
    parser.add_argument("--work", type=Path, required=True, help="folder of the studies; it is kept")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--variants", nargs="+", choices=tuple(STEPS), default=list(STEPS), help="parents come first")
    parser.add_argument("--primary", choices=tuple(STEPS), default=PRIMARY, help="the primary variant of the plan")
    parser.add_argument("--here", type=int, nargs="+", help="make only the cells of these seeds; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time; they share the processors evenly")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument(
        "--train-options", default="", metavar="WORDS", help="further options of chestx train, as one string"
    )
    parser.add_argument("--docs", type=Path, help="folder for the tables and their JSON; without it none are written")
    arguments = parser.parse_args(words)
    if arguments.data is not None:
        weights, more = Path(arguments.weights), shlex.split(arguments.train_options)
        train = ("train", "--weights", weights.resolve() if weights.is_file() else arguments.weights, *more)
        arguments.work.mkdir(parents=True, exist_ok=True)
        declare(arguments.work, plan_of(arguments, ("train", "--weights", weights.name, *more)))
        make_all(arguments.work.resolve(), arguments.data.resolve(), arguments, train)
    if arguments.docs is not None:
        document = judged(arguments.work, (BASELINE, *arguments.variants))
        write_atomic(arguments.docs / "cells.json", json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        insert(arguments.docs / "results.md", "cells", tables(document))


if __name__ == "__main__":
    main()
