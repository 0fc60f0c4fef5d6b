"""Overhead of `chestx study` over the commands that it runs, and gain or loss of two concurrent cells.

    python -m tools.benchmarks.study_overhead --rounds 3

Four sides alternate, each in a new folder: the commands as typed, one process each; the same calls in one Python
process; `chestx study --jobs 1`; `chestx study --jobs 2`. All do the same work on synthetic images: folds, and in each
of two cells training, pruning and testing; then timing, and judging over the folds.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from chestx_cli.data.synthetic.sets import write_synthetic_set
from tools.harness.machine import describe
from tools.harness.processes import ROOT, in_turn, ratio_of, run, say

FOLDS = 2
VARIANT = {"method": "oneshot", "amount": 0.5}
TIMING = {"rounds": 1, "duration": 0.5, "runtimes": ("onnxruntime",)}
# In one process: the commands as called from Python.
SCRIPT = """\
import json, sys
from pathlib import Path
import chestx_cli as chestx
options = json.loads(sys.argv[1])
root = Path("study")
chestx.split("data", study=root, folds=options["folds"])
for fold in range(1, options["folds"] + 1):
    cell = root / f"fold-{fold}"
    chestx.train(study=cell, **options["train"])
    chestx.prune(study=cell, **options["variant"])
    chestx.evaluate(study=cell)
chestx.benchmark(study=root / "fold-1", **options["timing"])
chestx.compare("baseline", "oneshot-50", study=root)
"""


def main(words: Sequence[str] | None = None) -> None:
    """Measure all sides, alternating, and print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--images", type=int, default=120)
    options.add_argument("--backbone", default="resnet18")
    options.add_argument("--epochs", type=int, default=8)
    arguments = options.parse_args(words)
    train = {"backbone": arguments.backbone, "weights": "none", "epochs": arguments.epochs, "batch_size": 16}
    with tempfile.TemporaryDirectory(prefix="chestx-overhead-") as work:
        data = Path(work) / "data"
        write_synthetic_set(data, images=arguments.images, seed=1, size_px=256)
        sides: dict[str, Callable[[Path], float]] = {
            "commands by hand, a process each": lambda folder: _by_hand(folder, train),
            "the same calls in one process": lambda folder: _in_one(folder, train),
            "`chestx study --jobs 1`": lambda folder: _study(folder, train, 1),
            "`chestx study --jobs 2`": lambda folder: _study(folder, train, 2),
        }
        taken = in_turn(arguments.rounds, *(_clocked(name, side, Path(work), data) for name, side in sides.items()))
    print(
        "| side | wall time s, median (range) | against by hand | processor time s, median (range) | against by hand |"
    )
    print("|---|---:|---:|---:|---:|")
    for name, results in zip(sides, taken, strict=True):
        texts = [name]
        for kind in (0, 1):
            own, base = ([result[kind] for result in side] for side in (results, taken[0]))
            texts += [f"{statistics.median(own):.1f} ({min(own):.1f}–{max(own):.1f})", _ratio(own, base)]
        print(f"| {' | '.join(texts)} |")
    walls = [[wall for wall, _ in side] for side in taken]
    print(f"\nWall time of `--jobs 2` against `--jobs 1`: {_ratio(walls[3], walls[2])}.")
    machine = describe()
    print(f"Machine: {machine['processor']}, {machine['threads']} processors; torch {machine['torch']}. Measured with")
    typed = sys.argv[1:] if words is None else words
    print(f"`{shlex.join(['python', '-m', 'tools.benchmarks.study_overhead', *typed])}`.")


def _ratio(own: Sequence[float], base: Sequence[float]) -> str:
    ratio = ratio_of(own, base)
    return f"{ratio.median:.3f} ({ratio.low:.3f}–{ratio.high:.3f})"


def _clocked(name: str, side: Callable[[Path], float], work: Path, data: Path) -> Callable[[int], tuple[float, float]]:
    """Return a function that runs a side in a new folder and returns its wall time and its processor time."""

    def measure(index: int) -> tuple[float, float]:
        folder = Path(tempfile.mkdtemp(dir=work))
        (folder / "data").symlink_to(data)
        started_s = time.perf_counter()
        cpu_s = side(folder)
        wall_s = time.perf_counter() - started_s
        say(f"round {index + 1}: {name}: {wall_s:.1f} s, {cpu_s:.1f} s of processors")
        return wall_s, cpu_s

    return measure


def _python(folder: Path, *words: object) -> float:
    """Run Python to its end; return the processor time in seconds of the process and its children."""
    ended = run([sys.executable, *map(str, words)], folder, {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"})
    if ended.code != 0:
        raise SystemExit(f"{words}: {ended.err.strip()[-1000:]}")
    return ended.cpu_s


def _flags(options: dict[str, object]) -> list[object]:
    words: list[object] = []
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", ",".join(value) if isinstance(value, tuple) else value]
    return words


def _by_hand(folder: Path, train: dict[str, object]) -> float:
    commands: list[tuple[object, ...]] = [("split", "data", "--folds", FOLDS)]
    for fold in range(1, FOLDS + 1):
        at = ("--study", f"study/fold-{fold}")
        commands += [
            ("train", *at, *_flags(train)),
            ("prune", *at, *_flags(dict(VARIANT))),
            ("evaluate", *at),
        ]
    commands.append(("benchmark", "--study", "study/fold-1", *_flags(dict(TIMING))))
    commands.append(("compare", "baseline", "oneshot-50"))
    return sum(_python(folder, "-m", "chestx_cli", *words) for words in commands)


def _in_one(folder: Path, train: dict[str, object]) -> float:
    options = {"folds": FOLDS, "train": train, "variant": VARIANT, "timing": TIMING}
    return _python(folder, "-c", SCRIPT, json.dumps(options))


def _study(folder: Path, train: dict[str, object], jobs: int) -> float:
    tables = {"train": train, "benchmark": TIMING}
    lines = ['data = "data"', f"folds = {FOLDS}", "seeds = [42]"]
    for table, options in tables.items():
        lines += [f"[{table}]", *(f"{name.replace('_', '-')} = {json.dumps(value)}" for name, value in options.items())]
    lines += ["[[variants]]", 'name = "oneshot-50"', 'steps = [{ prune = "oneshot", amount = 0.5 }]']
    (folder / "study.toml").write_text("\n".join(lines) + "\n")
    return _python(folder, "-m", "chestx_cli", "study", "study.toml", "--jobs", jobs)


if __name__ == "__main__":
    main()
