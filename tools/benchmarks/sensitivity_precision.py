"""Time of `chestx sensitivity` in each precision, and how far its measurements are from FP32.

    python -m tools.benchmarks.sensitivity_precision --study STUDY --rounds 3

The precisions alternate, on a copy of a study with a baseline. Differences and rank correlations are of all
measurements, not only of those that the command repeats in FP32.
"""

from __future__ import annotations

import argparse
import math
import shlex
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.harness.documents import insert
from tools.harness.machine import describe
from tools.harness.processes import ROOT, Ended, chestx, in_turn, ratio_of, run_process, say

PRECISIONS = ("fp32", "bf16", "int8")
HEADER = (
    "| `--precision` | wall s, median (range) | of FP32 | processor s | largest difference of a loss increase "
    "| of an accuracy | rank correlation of measurements | of layers |",
    "|---|---:|---:|---:|---:|---:|---:|---:|",
)


def main(words: Sequence[str] | None = None) -> None:
    """Measure all precisions, alternating, and write the table into the results."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--study", type=Path, required=True)
    options.add_argument("--precisions", default=",".join(PRECISIONS), help="the first is FP32")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--docs", type=Path, default=ROOT / "docs")
    arguments = options.parse_args(words)
    precisions = arguments.precisions.split(",")
    with tempfile.TemporaryDirectory(prefix="chestx-sensitivity-") as work:
        study = Path(work) / "study"
        shutil.copytree(arguments.study, study)

        def swept(precision: str) -> Ended:
            say(f"chestx sensitivity --precision {precision}")
            return run_process(chestx("sensitivity", "--study", study, "--precision", precision, "--json"))

        sides = in_turn(arguments.rounds, *(lambda _index, one=one: swept(one) for one in precisions))
    lines = list(HEADER)
    exact = sides[0]
    for precision, ended in zip(precisions, sides, strict=True):
        walls = [one.seconds for one in ended]
        ratio = ratio_of(walls, [one.seconds for one in exact])
        cells = [
            f"`{precision}`",
            f"{statistics.median(walls):.1f} ({min(walls):.1f}–{max(walls):.1f})",
            f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})",
            f"{statistics.median(one.cpu_s for one in ended):.0f}",
            *_differences(ended[0].json(), exact[0].json()),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    machine, sweep = describe(), exact[0].json()
    typed = sys.argv[1:] if words is None else words
    shown = shlex.join(Path(word).name if "/" in word else word for word in typed)
    lines += [
        "",
        f"{len(sweep['rows'])} layers at {len(sweep['amounts'])} amounts, {sweep['images']} validation images; "
        f"{arguments.rounds} rounds. Machine: {machine['processor']}, {machine['threads']} processors "
        f"({machine['instructions']}); torch {machine['torch']}. "
        f"Measured with `python -m tools.benchmarks.sensitivity_precision {shown}`.",
    ]
    insert(arguments.docs / "results.md", "sensitivity in each precision", "\n".join(lines))
    print("\n".join(lines))


def _differences(rough: dict[str, Any], exact: dict[str, Any]) -> list[str]:
    """Return the largest differences and the rank correlations of a record's measurements from those in FP32."""
    from scipy.stats import spearmanr

    if rough["precision"] == "fp32":
        return ["–"] * 4
    increases = [
        {(one["layer"], one["amount"]): one["loss"] - record["loss"] for one in record["measurements"]}
        for record in (rough, exact)
    ]
    accuracies = [
        {(one["layer"], one["amount"]): one["accuracy"] for one in record["measurements"]} for record in (rough, exact)
    ]
    layers = [{row["layer"]: row["mean_loss_increase"] for row in record["rows"]} for record in (rough, exact)]
    correlations = [spearmanr(list(a.values()), [b[key] for key in a]).statistic for a, b in (increases, layers)]
    return [
        f"{_largest(*increases):.4f}",
        f"{_largest(*accuracies):.3f}",
        *(f"{value:.4f}" if math.isfinite(value) else "–" for value in correlations),
    ]


def _largest(one: dict[Any, float], other: dict[Any, float]) -> float:
    return max(abs(value - other[key]) for key, value in one.items())


if __name__ == "__main__":
    main()
