"""Runs the reliability tests: `python -m tools.reliability --only images,fuzz --length full`.

Each group works in its own empty folder. Results of other groups are kept. Exits with 1 if a case failed.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools.harness.machine import describe
from tools.harness.processes import ROOT, say
from tools.reliability.children import children
from tools.reliability.registry import Setting, group, group_names
from tools.reliability.results import Measured, markdown, read_results


def main(words: Sequence[str] | None = None) -> int:
    """Run the selected groups and record the results."""
    typed = sys.argv[1:] if words is None else words
    options = _parser().parse_args(typed)
    chosen = options.only.split(",")
    if unknown := sorted(set(chosen) - set(group_names())):
        raise SystemExit(f"unknown {', '.join(unknown)}: choose from {', '.join(group_names())}")
    shown = [Path(word).name if "/" in word else word for word in typed]
    command = shlex.join(["python", "-m", "tools.reliability", *shown])
    results = read_results(options.out)
    failed = False
    with children() as at, tempfile.TemporaryDirectory(prefix="chestx-torture-") as shared:
        for name in chosen:
            say(name)
            with tempfile.TemporaryDirectory(prefix="chestx-torture-") as work:
                setting = Setting(work=Path(work), shared=Path(shared), at=at, length=options.length)
                figures = tuple(group(name)(setting))
            results.groups[name] = Measured(length=options.length, command=command, machine=describe(), figures=figures)
            # After each group, so that an interrupted run keeps its results.
            results.write(options.out)
            for figure in figures:
                failed = failed or not figure.reached
                for failure in figure.failures:
                    say(f"{figure.test}: {failure}")
    print(markdown(results))
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = options.add_argument
    add("--only", default=",".join(group_names()), help="groups to measure, of " + ",".join(group_names()))
    add("--length", choices=("short", "full"), default="full", help="a few seconds per group, or the published size")
    add(
        "--out",
        type=Path,
        default=ROOT / "docs" / "reliability.json",
        help="JSON file; the table goes between the markers of the .md file of the same name beside it",
    )
    return options


if __name__ == "__main__":
    sys.exit(main())
