"""The whole study from Python: the same functions, records and numbers as examples/study.sh.

Usage: python examples/study.py DATA STUDY [WEIGHTS] (imagenet, none or a file; as `chestx train --weights`)
"""

from __future__ import annotations

import sys
from pathlib import Path

import chestx_cli as chestx


def run_study(data: Path, study: Path, weights: str = "imagenet") -> None:
    """Run every command of the study and print what it found."""
    chestx.split(data, study=study)
    chestx.train(data, study=study, weights=weights)
    ranking = chestx.sensitivity(study=study)
    chestx.prune(study=study, method="oneshot", amount=0.5)
    chestx.prune(study=study, method="iterative", steps=3, amount=0.2)
    chestx.quantize(study=study, method="dynamic")
    results = chestx.evaluate(study=study)
    speeds = chestx.benchmark(study=study, device="cpu")
    written = chestx.report(study=study)

    print(f"most critical layers: {[row.layer for row in ranking.rows[:3]]}")
    for row in results.rows:
        low, high = row.accuracy_interval
        print(f"{row.variant}: accuracy {row.accuracy:.1%} ({low:.1%} to {high:.1%}), {row.verdict}")
    for timed in speeds.rows:
        print(f"{timed.variant} under {timed.runtime}: {timed.latency_p50_ms:.2f} ms")
    print(f"report: {written.html}")


if __name__ == "__main__":
    run_study(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
