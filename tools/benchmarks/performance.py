"""Measures all performance targets of the project, and writes results, table and figure.

`python -m tools.benchmarks.performance --data DIR --weights FILE` measures everything at full size; `--only` selects
groups. Without data, images are drawn and the network starts untrained. Groups may be measured one after the other on
one machine: earlier results of other groups are kept.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from chestx_cli.core.files import write_atomic
from tools.benchmarks import single_commands
from tools.benchmarks.against_notebook import LIGHTNING, measure_sensitivity, measure_study, measure_training
from tools.benchmarks.results import FIGURE_FILE, JSON_FILE, Results, Row, draw, markdown, read_results
from tools.benchmarks.workplace import Settings, Workplace
from tools.harness.documents import insert
from tools.harness.processes import ROOT, module, run_process, say

FROM_STUDY = ("study", "training", "sensitivity")
MEASURES: dict[str, Callable[[Workplace], list[Row]]] = {
    "ceiling": single_commands.measure_ceiling,
    "evaluate": single_commands.measure_evaluate,
    "startup": single_commands.measure_startup,
    "report": single_commands.measure_report,
    "growth": single_commands.measure_growth,
    "decode": single_commands.measure_decode,
    "bf16": single_commands.measure_bf16,
}
GROUPS = (*FROM_STUDY, *MEASURES)
NO_BF16 = "Whether bf16 costs accuracy cannot be measured here: the processor has no instructions for it."
NO_LIGHTNING = "Lightning's loop was not measured: pytorch-lightning is not installed (it is in the bench extra)."


def main(words: Sequence[str] | None = None) -> int:
    """Measure the selected groups and record the results."""
    settings = vars(parser().parse_args(words))
    command = "python -m tools.benchmarks.performance " + shlex.join(_shown(sys.argv[1:] if words is None else words))
    wanted = settings.pop("only").split(",")
    unknown = sorted(set(wanted) - set(GROUPS))
    if unknown:
        raise SystemExit(f"unknown {', '.join(unknown)}: choose from {', '.join(GROUPS)}")
    docs, work = settings.pop("docs"), settings.pop("work")
    say("the machine's peaks")
    machine = run_process(module("harness.machine")).json()
    results = read_results(docs / JSON_FILE, machine["machine"], machine["operations_per_s"])
    with tempfile.TemporaryDirectory(prefix="chestx-bench-") as temporary:
        place = Workplace(settings=Settings(work=work or Path(temporary), **settings))
        place.work.mkdir(parents=True, exist_ok=True)
        for group, rows, note in _measured(place, set(wanted), results):
            results.replace_group(group, rows, command.strip(), note)
            # After each group, so that an interrupted run keeps its results.
            _write(results, docs)
    print(markdown(results, GROUPS))
    return 0


def _measured(place: Workplace, wanted: set[str], results: Results) -> Iterator[tuple[str, list[Row], str]]:
    """Yield each selected group with its rows and an optional note."""
    note = "" if find_spec(LIGHTNING) else NO_LIGHTNING
    if "study" in wanted:
        rows, results.steps = measure_study(place, wanted)
        for group in FROM_STUDY:
            if group in wanted:
                yield group, [row for row in rows if row.group == group], note if group == "training" else ""
    else:
        if "training" in wanted:
            yield "training", measure_training(place), note
        if "sensitivity" in wanted:
            yield "sensitivity", measure_sensitivity(place), ""
    for group, measure in MEASURES.items():
        if group not in wanted:
            continue
        if group == "bf16" and not single_commands.bf16_is_native():
            yield group, [], NO_BF16
        else:
            yield group, measure(place), ""


def _write(results: Results, docs: Path) -> None:
    write_atomic(docs / JSON_FILE, results.to_json())
    draw(results, GROUPS, docs / FIGURE_FILE)
    insert(docs / "results.md", "performance", markdown(results, GROUPS))


def _shown(words: Sequence[str]) -> list[str]:
    """Return a command line without local folders, with only the names of files and folders."""
    return [Path(word).name if "/" in word else word for word in words]


def parser() -> argparse.ArgumentParser:
    """Return the options of this script."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", default=",".join(GROUPS), help="groups to measure, of " + ",".join(GROUPS))
    add_settings(options)
    return options


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the options for data, weights, sizes and output."""
    add = parser.add_argument
    add("--data", type=Path, help="folder of class folders; synthetic images by default")
    add("--weights", type=Path, help="initial weights, safetensors; untrained by default")
    add("--work", type=Path, help="folder for intermediate files, kept; a temporary one by default")
    add("--docs", type=Path, default=ROOT / "docs", help="where the results, their table and figure go")
    add("--backbone", default="resnet50", help="torchvision ResNet")
    add("--image-size", type=int, default=224)
    add("--drawn-images", type=int, default=378, help="images to draw without --data")
    add("--drawn-size", type=int, default=256, help="their side in pixels")
    add("--epochs", type=int, default=12)
    add("--finetune-epochs", type=int, default=2)
    add("--batch-size", type=int, default=32)
    add("--amounts", default="0.2,0.4,0.6,0.8")
    add("--layers", default="", help="only these layers in the sensitivity sweep; all by default")
    add("--rounds", type=int, default=3)
    add("--startup-runs", type=int, default=15)
    add("--bench-rounds", type=int, default=5, help="rounds of the study's own benchmark")
    add("--bench-seconds", type=float, default=1.0, help="its seconds per model, batch size and round")
    add("--large-images", type=int, default=10_000, help="large images to evaluate")
    add("--variant", default="static-int8", help="INT8 variant to evaluate them with; made if it is missing")
    add("--variants", type=int, default=10, help="variants to report")
    add("--growth-images", type=int, default=1000)
    add("--seeds", type=int, default=5, help="trainings in each precision")


if __name__ == "__main__":
    sys.exit(main())
