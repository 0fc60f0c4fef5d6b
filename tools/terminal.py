"""Writes docs/terminal.md, for review: the output of commands on a study, on terminals of 80 and 120 columns.

    python -m tools.terminal STUDY

The commands run on a copy of the study. Stored results are shown as by the commands that made them; compare, report,
export, compress and status run on the copy; demo, distill, predict, study (its plan) and, if its result is missing,
sensitivity run on synthetic images.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

import chestx_cli
from chestx_cli.cli.console import show_record
from chestx_cli.command_table import SUMMARIES
from chestx_cli.core.record import Record
from chestx_cli.evaluation.reading import read_study
from chestx_cli.evaluation.results import CPU
from chestx_cli.records.benchmark import BenchmarkRecord
from chestx_cli.reporting import answers
from chestx_cli.reporting.decision import decide
from chestx_cli.store.directory import open_study

if TYPE_CHECKING:
    from chestx_cli.evaluation.results import StudyResults

PAGE = Path(__file__).parents[1] / "docs" / "terminal.md"
WIDTHS = (80, 120)
HEADING = """# On the terminal

The output of each command on one study, at 80 and at 120 columns; `--full` adds every table. Written by
`python -m tools.terminal STUDY`. Research software. Not a medical device.
"""


def records_of(results: StudyResults, second: str) -> dict[str, Record]:
    """Return a record with its answer for each command; `second` is the variant to compare with the baseline."""
    study = results.study.root
    decision = decide(results.variants)
    of_split = answers.of_split(results.split_record, results.study.root)
    shown: dict[str, Record] = {"split": results.split_record.replace(answer=of_split)}
    for variant in results.variants:
        command = "train" if variant.record.parent is None else "quantize" if variant.record.quantization else "prune"
        shown.setdefault(command, variant.record.replace(answer=answers.of_variant(variant.record)))
    measured = next((variant.sensitivity for variant in results.variants if variant.sensitivity), None)
    if measured is not None:
        shown["sensitivity"] = measured.replace(answer=answers.of_sensitivity(measured))
    evaluation = next(variant.evaluation for variant in results.variants if variant.evaluation)
    shown["evaluate"] = evaluation.replace(answer=answers.of_evaluation(evaluation, decision))
    shown["compare"] = chestx_cli.compare("baseline", second, study=study)
    timed = [variant.benchmark_on(CPU) for variant in results.variants]
    joined = _joined([benchmark for benchmark in timed if benchmark])
    if joined is not None:
        shown["benchmark"] = joined.replace(answer=answers.of_benchmark(joined, set(), decision))
    shown["report"] = chestx_cli.report(study=study)
    shown["export"] = chestx_cli.export(second, study=study, out=Path("bundle"))
    # A minimal time budget: the first candidate is built, and no other.
    smaller = next(variant.record.model_bytes for variant in results.variants if variant.name == second)
    shown["compress"] = chestx_cli.compress(
        study=study, max_size_mb=smaller * 1.1 / 1e6, max_drop=0.05, time_budget=0.01
    )
    demonstration = chestx_cli.demo(quick=True)
    if "sensitivity" not in shown:
        shown["sensitivity"] = chestx_cli.sensitivity(study=Path(demonstration.study))
    shown["demo"] = demonstration
    images = Path(demonstration.study).parent / "data"
    films = sorted(images.rglob("*.png"))
    shown["predict"] = chestx_cli.predict((*films[:4], *films[-4:]), study=study)
    shown["status"] = chestx_cli.status(study=study)
    shown["doctor"] = chestx_cli.doctor(study=study)
    shown["distill"] = chestx_cli.distill(
        study=Path(demonstration.study), backbone="resnet18", weights="none", epochs=8, batch_size=16, lr=1e-3
    )
    Path("chestx.toml").write_text("[all]\nseed = 7\n\n[train]\nepochs = 20\n", encoding="utf-8")
    shown["config"] = chestx_cli.config("train")
    shown["study"] = chestx_cli.study(images, study=Path("folds"), weights="none", dry_run=True)
    return {command: shown[command] for command in SUMMARIES if command in shown}


def _joined(parts: list[BenchmarkRecord]) -> BenchmarkRecord | None:
    if not parts:
        return None
    rows = tuple(row for part in parts for row in part.rows)
    return parts[0].replace(rows=rows, cost_rows=tuple(row for part in parts for row in part.cost_rows))


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def page(shown: dict[str, Record]) -> str:
    """Return the page: the output of each command at each width."""
    lines = [HEADING]
    for command, record in shown.items():
        lines.append(f"## {command}\n")
        for width in WIDTHS:
            text = _Terminal()
            show_record(record, Console(file=text, width=width, color_system=None))
            content = "\n".join(line.rstrip() for line in text.getvalue().strip().splitlines())
            lines.append(f"{width} columns:\n\n```text\n{content}\n```\n")
    return "\n".join(lines)


def main() -> None:
    """Write the page for the given study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    study = parser.parse_args().study.resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        shutil.copytree(study, "study")
        results = read_study(open_study(Path("study")))
        second = next(variant.name for variant in reversed(results.variants) if variant.comparison)
        shown = records_of(results, second)
    PAGE.write_text(page(shown), encoding="utf-8")


if __name__ == "__main__":
    main()
