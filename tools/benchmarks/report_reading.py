"""Compares two versions of chestx on the same study: `python -m tools.benchmarks.report_reading BEFORE AFTER`.

Each is a checkout. The study has ten variants of the tests' tiny backbone, made, evaluated and timed by BEFORE; each
side has already reported once on its copy. The sides alternate. Wall time is what users wait for; processor time, of
the command and its child processes, depends little on other load of the machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from tools.harness.machine import describe
from tools.harness.processes import ROOT, Ended, in_turn, ratio_of, run_process, say, spread_of

ARCHIVE = ROOT / "tests" / "fixtures" / "old-study.tar.xz"
AMOUNTS = ("0.1", "0.2", "0.3", "0.4", "0.6")
TIMED = ("benchmark", "--rounds", "1", "--duration", "0.02", "--runtimes", "onnxruntime")


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("before", type=Path)
    options.add_argument("after", type=Path)
    options.add_argument("--study", type=Path, help="a study to report on; without it one is made")
    options.add_argument("--rounds", type=int, default=7)
    arguments = options.parse_args()
    checkouts = {"before": arguments.before.resolve(), "after": arguments.after.resolve()}
    print(describe())
    with tempfile.TemporaryDirectory() as work:
        study = arguments.study or _study(checkouts["before"], Path(work))
        copies = {side: Path(shutil.copytree(study, Path(work) / side)) for side in checkouts}
        for side, checkout in checkouts.items():
            _run(checkout, "report", "--study", str(copies[side]))
        for what, prepare in (
            ("chestx report, 10 variants, figures drawn by evaluate, benchmark, ...", lambda _: None),
            ("chestx report, 10 variants, all figures to draw", _remove_figures),
        ):
            sides = [_timed(checkouts[side], copies[side], prepare) for side in checkouts]
            before, after = in_turn(arguments.rounds, *sides)
            _print_ratio(f"{what}, wall time", [one.seconds for one in before], [one.seconds for one in after])
            _print_ratio(f"{what}, processor time", [one.cpu_s for one in before], [one.cpu_s for one in after])


def _print_ratio(what: str, before_s: list[float], after_s: list[float]) -> None:
    """Print the seconds of both sides and the speed-up."""
    spreads = [spread_of(before_s), spread_of(after_s)]
    sides = " and ".join(f"{one.median:.2f} s ({one.low:.2f}-{one.high:.2f})" for one in spreads)
    ratio = ratio_of(before_s, after_s)
    print(f"{what}: before and after {sides}, {ratio.median:.2f} times ({ratio.low:.2f}-{ratio.high:.2f})", flush=True)


def _study(checkout: Path, folder: Path) -> Path:
    """Return a study with ten variants, evaluated and timed."""
    say("making the study")
    shutil.unpack_archive(ARCHIVE, folder)
    study = folder / "study"
    for words in (*(("prune", "--amount", amount) for amount in AMOUNTS), ("evaluate",), TIMED):
        _run(checkout, *words, "--study", str(study))
    return study


def _remove_figures(study: Path) -> None:
    """Remove all drawn figures."""
    shutil.rmtree(study / "report", ignore_errors=True)


def _timed(checkout: Path, study: Path, prepare: Callable[[Path], None]) -> Callable[[int], Ended]:
    """Return a function that runs one report on a copy of a study."""

    def once(_round: int) -> Ended:
        with tempfile.TemporaryDirectory() as place:
            copy = Path(shutil.copytree(study, Path(place) / "study"))
            prepare(copy)
            return _run(checkout, "report", "--study", str(copy))

    return once


def _run(checkout: Path, *words: str) -> Ended:
    """Run a command of a checkout to its end."""
    return run_process([sys.executable, "-m", "chestx_cli", *words], env=_environment(checkout))


def _environment(checkout: Path) -> Mapping[str, str]:
    paths = (checkout / "src", checkout / "tests" / "support" / "tiny")
    return {"PYTHONPATH": os.pathsep.join(map(str, paths)), "CHESTX_TINY_BACKBONE": "1", "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    main()
