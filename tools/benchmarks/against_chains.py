"""`chestx compress` to a limit of the file's size, compared with the best of 20 chains of commands typed by hand.

    python -m tools.benchmarks.against_chains --study STUDY --work DIR --max-size-mb 6.5 --minutes 10

The search comes first. The chains then get the time that it took, on the same processors: one after the other, in the
order in which somebody who knows the limit would type them. None begins after that time. Each side's best model is that
of lowest validation loss within the limit, and both are measured on the test images once. Each side works in a copy of
the study that has its baseline alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chestx_cli.commands.compress import compress
from chestx_cli.commands.prune import prune
from chestx_cli.commands.quantize import quantize
from chestx_cli.compression.search import PACKED, QAT, STATIC
from chestx_cli.core.files import write_atomic
from chestx_cli.core.progress import SILENT
from chestx_cli.core.record import jsonable
from chestx_cli.evaluation.statistics.outcome import log_odds_of_classes, outcome_of
from chestx_cli.inference.prediction import predict_split
from chestx_cli.records.split import TEST, VAL
from chestx_cli.records.variant import BASELINE
from chestx_cli.store.directory import Study
from tools.benchmarks.against_pruners import Scores
from tools.harness.machine import describe
from tools.harness.processes import say

if TYPE_CHECKING:
    from chestx_cli.records.variant import VariantRecord

# FP32 files have so many times the bytes of those of each quantization.
SMALLER = {STATIC: 4, QAT: 4, PACKED: 7}
MB = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Channels removed, a fine-tuning, and a quantization; chains with the same fine-tuning share its network."""

    percent: int
    criterion: str = "bn-scale"
    distill: bool = False
    lr: float = 1e-4
    schedule: str = "constant"
    int8: str = STATIC

    @property
    def fitted(self) -> str:
        """Return the name of the fine-tuned network."""
        words = [f"{self.percent}", self.criterion, *(["distilled"] if self.distill else []), f"{self.lr:g}"]
        return "-".join([*words, *([self.schedule] if self.schedule != "constant" else [])])

    @property
    def name(self) -> str:
        """Return the name of the INT8 variant."""
        return f"{self.fitted}-{self.int8}"


CHAINS = (
    Chain(percent=75, distill=True, lr=3e-4),
    Chain(percent=75, distill=True, lr=3e-4, int8=QAT),
    Chain(percent=50, distill=True, lr=3e-4, int8=PACKED),
    Chain(percent=60, distill=True, lr=3e-4, int8=PACKED),
    Chain(percent=50, distill=True, int8=PACKED),
    Chain(percent=75, distill=True),
    Chain(percent=75),
    Chain(percent=75, int8=QAT),
    Chain(percent=75, distill=True, lr=3e-4, schedule="cosine"),
    Chain(percent=75, distill=True, lr=3e-4, criterion="l2"),
    Chain(percent=75, distill=True, lr=3e-4, criterion="taylor"),
    Chain(percent=80, distill=True, lr=3e-4),
    Chain(percent=80, distill=True, lr=3e-4, int8=QAT),
    Chain(percent=80, distill=True),
    Chain(percent=80),
    Chain(percent=80, distill=True, lr=3e-4, schedule="cosine"),
    Chain(percent=80, distill=True, lr=3e-4, criterion="l2"),
    Chain(percent=85, distill=True, lr=3e-4),
    Chain(percent=70, distill=True, lr=3e-4),
    Chain(percent=60, distill=True, lr=3e-4),
)


@dataclass(frozen=True, kw_only=True)
class Made:
    """A model of one side: its file, and its validation results; None if it was too large to be quantized."""

    name: str
    size_mb: float
    val: Scores | None
    ended_s: float

    def is_within(self, max_size_mb: float) -> bool:
        """Return whether the model was measured and meets the limit."""
        return self.val is not None and self.size_mb <= max_size_mb


@dataclass(frozen=True, kw_only=True)
class Side:
    """All models of one side, and its best within the limit with its test results; None if none is within it."""

    side: str
    seconds: float
    models: tuple[Made, ...]
    best: str | None
    val: Scores | None
    test: Scores | None


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What both sides have in common: the limit, the search's minutes, and the epochs of a fine-tuning on each side."""

    max_size_mb: float
    minutes: float
    search_epochs: int
    chain_epochs: int
    lr: float
    round_to: int


def copy_of(study: Path, to: Path) -> Study:
    """Copy the split and the baseline of a study."""
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    for name in ("split.csv", "split.json"):
        shutil.copy(study / name, to)
    baseline = Path("variants") / BASELINE
    results = shutil.ignore_patterns("evaluation.*", "predictions.*", "benchmark.*")
    shutil.copytree(study / baseline, to / baseline, ignore=results)
    return Study(to)


def scores_of(study: Study, record: VariantRecord, part: str) -> Scores:
    """Return the results of a variant on one part of the split, computed as it is deployed."""
    split = study.read_split()
    rows = split.indices(part)
    probabilities = predict_split(study, split, record, rows, SILENT, threads=None)
    return Scores.of(outcome_of(log_odds_of_classes(probabilities, split.positive), split.is_positive(rows)))


def by_search(study: Study, terms: Terms) -> Side:
    """Return what `chestx compress` finds."""
    started_s = time.perf_counter()
    found = compress(
        study=study.root,
        max_size_mb=terms.max_size_mb,
        # The chains have no limit of the drop either.
        max_drop=1.0,
        time_budget=terms.minutes,
        finetune_epochs=terms.search_epochs,
        lr=terms.lr,
        round_to=terms.round_to,
    )
    seconds = time.perf_counter() - started_s
    models = [
        Made(
            name=row.variant,
            size_mb=row.size_mb,
            val=scores_of(study, study.read_variant(row.variant), VAL),
            ended_s=seconds,
        )
        for row in found.rows
    ]
    return side_of("compress", study, models, found.chosen, seconds)


def by_hand(study: Study, terms: Terms, seconds: float) -> Side:
    """Return what the chains make that begin within this time."""
    started_s = time.perf_counter()
    models: list[Made] = []
    for chain in CHAINS:
        if time.perf_counter() - started_s > seconds:
            say(f"no time left for {chain.name} and later ones")
            break
        models.append(made_by(study, chain, terms, started_s))
        say(f"{models[-1]}")
    within = [model for model in models if model.is_within(terms.max_size_mb)]
    best = min(within, key=lambda model: model.val.loss if model.val else float("inf"), default=None)
    return side_of("chains", study, models, best.name if best else None, time.perf_counter() - started_s)


def made_by(study: Study, chain: Chain, terms: Terms, started_s: float) -> Made:
    """Type a chain; the network that an earlier one has fine-tuned is used again."""
    fitted = prune(
        study=study.root,
        method="structured",
        amount=chain.percent / 100,
        criterion=chain.criterion,
        finetune_epochs=terms.chain_epochs,
        distill=chain.distill,
        lr=chain.lr,
        schedule=chain.schedule,
        round_to=terms.round_to,
        name=chain.fitted,
    )
    size_mb, val = fitted.model_bytes / SMALLER[chain.int8] / MB, None
    if size_mb <= terms.max_size_mb:
        options: dict[str, dict[str, Any]] = {
            STATIC: {"method": STATIC},
            QAT: {"method": QAT, "epochs": terms.chain_epochs},
            PACKED: {"method": STATIC, "int4_weights": True},
        }
        made = quantize(study=study.root, parent=chain.fitted, name=chain.name, **options[chain.int8])
        size_mb, val = made.model_bytes / MB, scores_of(study, made, VAL)
    return Made(name=chain.name, size_mb=size_mb, val=val, ended_s=round(time.perf_counter() - started_s, 1))


def side_of(name: str, study: Study, models: list[Made], best: str | None, seconds: float) -> Side:
    """Return a side, with its best model measured on the test images."""
    record = study.read_variant(best) if best else None
    return Side(
        side=name,
        seconds=round(seconds, 1),
        models=tuple(models),
        best=best,
        val=scores_of(study, record, VAL) if record else None,
        test=scores_of(study, record, TEST) if record else None,
    )


def lines_of(side: Side, max_size_mb: float) -> list[str]:
    """Return a side as text: its models, then its best."""
    lines = [f"{side.side}: {side.seconds:.0f} s"]
    for model in side.models:
        val = f"{model.val.loss:.4f} {model.val.accuracy:.3f} {model.val.auroc:.4f}" if model.val else "not quantized"
        within = "" if model.is_within(max_size_mb) else " (over the limit)"
        lines.append(f"  {model.name:45} {model.size_mb:6.2f} MB  {val}{within}")
    for part, scores in (("validation", side.val), ("test", side.test)):
        if scores:
            lines.append(f"  {side.best}, {part}: {scores.loss:.4f} {scores.accuracy:.3f} {scores.auroc:.4f}")
    return lines


def main(words: list[str] | None = None) -> None:
    """Run the search, then the chains, and write both as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--study", type=Path, required=True, help="study with a baseline; it is copied")
    parser.add_argument("--work", type=Path, required=True, help="folder for the copies, which are replaced")
    parser.add_argument("--max-size-mb", type=float, default=6.5)
    parser.add_argument("--minutes", type=float, default=10.0, help="time budget of the search")
    parser.add_argument("--search-epochs", type=int, default=8, help="epochs of each network that compress builds")
    parser.add_argument("--chain-epochs", type=int, default=1, help="epochs of each fine-tuning by hand")
    parser.add_argument("--lr", type=float, default=3e-4, help="learning rate of the search")
    parser.add_argument("--round-to", type=int, default=8, help="keep channels in multiples of this")
    parser.add_argument("--out", type=Path, default=Path("against_chains.json"))
    options = parser.parse_args(words)
    terms = Terms(**{name: getattr(options, name) for name in Terms.__dataclass_fields__})
    searched = by_search(copy_of(options.study, options.work / "search"), terms)
    print("\n".join(lines_of(searched, terms.max_size_mb)), flush=True)
    typed = by_hand(copy_of(options.study, options.work / "chains"), terms, searched.seconds)
    print("\n".join(lines_of(typed, terms.max_size_mb)))
    document = {"terms": jsonable(terms), "machine": describe(), "sides": jsonable([searched, typed])}
    write_atomic(options.out, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
