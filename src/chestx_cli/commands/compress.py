"""`chestx compress`: search pruning, students and INT8 for the best variant within limits of cost and accuracy."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from chestx_cli.commands.distill import distill, student_suffix
from chestx_cli.commands.prune import prune
from chestx_cli.commands.quantize import quantize
from chestx_cli.commands.sensitivity import sensitivity
from chestx_cli.commands.train import Fetch
from chestx_cli.compression.pruning.allocation import require_sensitivity
from chestx_cli.compression.pruning.criteria import CRITERIA
from chestx_cli.compression.pruning.methods import Structured
from chestx_cli.compression.quantization.methods import Qat, Static
from chestx_cli.compression.search import (
    ENERGY,
    FP32,
    GUIDED,
    INT4,
    INT8,
    OBJECTIVES,
    PACKED,
    QAT,
    STATIC,
    Bounds,
    Candidate,
    ChannelChoice,
    Cost,
    Network,
    Quality,
    Space,
    explore,
)
from chestx_cli.compression.search_folds import Fold, open_folds
from chestx_cli.compression.searched_models import SearchedModels
from chestx_cli.compression.short_fits import Student
from chestx_cli.core.command import Run, stage
from chestx_cli.core.errors import StudyError, UsageError, command_line, quoted
from chestx_cli.core.machine import available_threads, energy_counters
from chestx_cli.core.options import Opt, parse_names
from chestx_cli.core.printable import counted
from chestx_cli.core.shared_options import BatchSize, Force, LearningRate, Parent, Seed, StudyDir, Threads
from chestx_cli.evaluation.endpoints import ENDPOINTS
from chestx_cli.evaluation.predictions import stacked
from chestx_cli.evaluation.statistics.intervals import draw_patients
from chestx_cli.inference.onnx_export import PERCENT
from chestx_cli.inference.runtimes import NATIVE, RUNTIMES, require_installed
from chestx_cli.inference.speedups import NOISY
from chestx_cli.inference.timing import BUSY
from chestx_cli.records.commands import CompressRecord, CompressRow, ShortFitRow
from chestx_cli.records.sensitivity import GroupSensitivityRecord
from chestx_cli.records.variant import BASELINE, VariantRecord
from chestx_cli.reporting.answers import of_search
from chestx_cli.store.directory import open_study
from chestx_cli.store.lineage import uses_models
from chestx_cli.store.variants import derived_name

# Tried after the network's usual criterion: the norm of the weights, and the estimated change of the loss.
FURTHER_CRITERIA = ("l2", "taylor")
FLOOR = 0.05
# Others run no INT8 files, which the search compares with.
ONNX_RUNTIMES = RUNTIMES.names(lambda runtime: runtime.needs == "onnx")


@dataclass(kw_only=True)
class Builder:
    """Fits and builds candidates in every fold, builds with the commands a user would run, and measures them."""

    run: Run
    models: SearchedModels
    recipe: Structured
    deadline_s: float
    force: bool
    short_fits: list[ShortFitRow] = field(default_factory=list)
    fitted: dict[Network, int] = field(default_factory=dict)
    longest_s: dict[str | None, float] = field(default_factory=dict)
    rough: list[str] = field(default_factory=list)
    epoch_s: float = 0.0
    time_is_up: bool = False

    @property
    def folds(self) -> tuple[Fold, ...]:
        """The splits that every candidate is made in."""
        return self.models.folds

    @property
    def parent(self) -> VariantRecord:
        """The parent's record, of the first fold."""
        return self.folds[0].parent

    def cost(self, network: Network) -> dict[str, Cost]:
        """Measure and report the cost of an untrained network, by kind."""
        fits = self.folds[0].fits
        described = describe(network)
        with self.run.reporter.progress(f"Timing an untrained network: {described}", PERCENT) as advance:
            if network.student is not None:
                backbone = fits.students[network.student].backbone
                cost = fits.prober.cost(fits.initial(network.student), backbone, advance)
            else:
                cost = fits.prober.cost_without(network.percent, fits.cutting_of(network), advance)
        costs = "; ".join(f"{kind} {_in_words(cost[kind])}" for kind in (FP32, INT8))
        costs += f"; weights in 4 bits {cost[INT4].size_mb:.2f} MB"
        if any(one.is_rough for one in cost.values()):
            self.rough.append(f"an untrained network ({described})")
            costs += "; rough, since the machine is busy, or its threads compete"
        self.run.reporter.note(f"{described}: {costs}")
        return cost

    def nearest(self, percent: int, choice: ChannelChoice) -> int:
        """Return the percentage of MACs nearest to `percent` that a choice can remove, in the first fold."""
        return self._nearest(self.folds[0], Network(percent=percent, choice=choice))

    def _nearest(self, fold: Fold, network: Network) -> int:
        with self.run.reporter.progress(f"Choosing channels: {describe(network)}", None):
            return fold.fits.prober.nearest(network.percent, fold.fits.cutting_of(network))

    def may_fit(self, network: Network, epochs: int) -> bool:
        """Return whether a fit is known, or leaves the time in which its network could be built."""
        if all(fold.fits.has(network, epochs) for fold in self.folds):
            return True
        needed_s = (epochs - self.fitted.get(network, 0) + self.recipe.finetune_epochs) * self.epoch_s
        return self._has_time(needed_s, f"a short fit of {describe(network)}")

    def fit(self, network: Network, epochs: int) -> Quality:
        """Fit a network in every fold, for this many epochs in all; report and return its quality."""
        started_s = time.perf_counter()
        is_known = all(fold.fits.has(network, epochs) for fold in self.folds)
        pairs = [fold.pair(fold.fits.predictions(network, epochs)) for fold in self.folds]
        more = epochs - self.fitted.get(network, 0)
        self.fitted[network] = epochs
        if more > 0 and not is_known:
            self.epoch_s = max(self.epoch_s, (time.perf_counter() - started_s) / more)
        quality = self.models.quality(pairs)
        self.short_fits.append(
            ShortFitRow(
                network=describe(network),
                epochs=epochs,
                loss=quality.loss,
                accuracy=quality.accuracy,
                drop=quality.drop,
                fell=quality.fell,
            )
        )
        self.run.reporter.note(
            f"{describe(network)}, {counted(epochs, 'epoch')}: {_worth(quality)}; {self._left()} left"
        )
        return quality

    def may_begin(self, candidate: Candidate) -> bool:
        """Return whether a candidate exists, or would end in time if it takes as long as the longest of its kind."""
        name = self.name_of(candidate)
        if not self.force and all((fold.study.variant(name) / "variant.json").exists() for fold in self.folds):
            return True
        return self._has_time(self.longest_s.get(candidate.int8, 0.0), name)

    def build(self, candidate: Candidate) -> Quality:
        """Build a candidate or reuse an existing one; report and return its quality."""
        started_s = time.perf_counter()
        records = [self._made(fold, candidate) for fold in self.folds]
        quality = self.models.add(candidate, records)
        took_s = time.perf_counter() - started_s
        self.longest_s[candidate.int8] = max(took_s, self.longest_s.get(candidate.int8, 0.0))
        size = f"{self.models.size_bytes(candidate) / 1e6:.2f} MB"
        self.run.reporter.note(f"{records[0].name}: {_worth(quality)}, {size}; {self._left()} left")
        return quality

    def name_of(self, candidate: Candidate) -> str:
        """Return the name of a candidate's variant, by which a later run finds it."""
        network = candidate.network
        if network.is_parent:
            return derived_name(self.parent, _suffix_of(candidate))
        if network.choice is not None:
            own = f"{network.choice.method}-{network.percent}-{network.choice.criterion}"
        else:
            student = self.folds[0].fits.students[network.student or ""]
            # The epochs distinguish it from a student made by `chestx distill` itself.
            own = f"{student_suffix(student.backbone, student.width)}-{self.recipe.finetune_epochs}"
        fitted = derived_name(self.parent, own)
        return fitted if candidate.int8 is None else f"{fitted}-{_suffix_of(candidate)}"

    def _has_time(self, needed_s: float, what: str) -> bool:
        enough = self.deadline_s - time.perf_counter() > needed_s
        if not enough:
            self.time_is_up = True
            self.run.reporter.note(f"no time left for {what}: give more --time-budget to continue")
        return enough

    def _left(self) -> str:
        return counted(max(round((self.deadline_s - time.perf_counter()) / 60), 0), "minute")

    def _made(self, fold: Fold, candidate: Candidate) -> VariantRecord:
        network, recipe = candidate.network, self.recipe
        name, root = self.name_of(candidate), fold.study.root
        if candidate.int8 is not None:
            fitted = Candidate(network=network, int8=None)
            packed = {"int4_weights": True} if candidate.int8 == PACKED else {}
            return self.run.make(
                quantize,
                study=root,
                method=QAT if candidate.int8 == QAT else STATIC,
                parent=self.parent.name if network.is_parent else self.name_of(fitted),
                name=name,
                seed=recipe.seed,
                force=self.force,
                **packed,
            )
        if network.choice is None:
            student = fold.fits.students[network.student or ""]
            return self.run.make(
                distill,
                study=root,
                teacher=self.parent.name,
                name=name,
                backbone=student.backbone,
                width=student.width,
                weights=student.weights,
                lr=recipe.lr,
                batch_size=recipe.batch_size,
                epochs=recipe.finetune_epochs,
                seed=recipe.seed,
                force=self.force,
            )
        return self.run.make(
            prune,
            study=root,
            method=network.choice.method,
            # Widths, and so the shares that can be removed, may differ between folds.
            amount=(network.percent if fold is self.folds[0] else self._nearest(fold, network)) / 100,
            finetune_epochs=recipe.finetune_epochs,
            criterion=network.choice.criterion,
            round_to=recipe.round_to,
            floor=recipe.floor,
            distill=recipe.distill,
            parent=self.parent.name,
            name=name,
            lr=recipe.lr,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            force=self.force,
        )


def _suffix_of(candidate: Candidate) -> str:
    """Return how the name of a quantized variant ends."""
    return Qat.suffix if candidate.int8 == QAT else Static(int4_weights=candidate.int8 == PACKED).suffix


def describe(network: Network) -> str:
    """Return a network in words."""
    if network.student is not None:
        return f"student {network.student}"
    if network.choice is None:
        return "the parent"
    guided = ", guided" if network.choice.method == GUIDED else ""
    return f"{network.percent} % of the MACs removed by {network.choice.criterion}{guided}"


def _in_words(cost: Cost) -> str:
    energy = "" if cost.energy_mj is None else f", {cost.energy_mj:.1f} mJ"
    return f"{cost.latency_ms:.2f} ms, {cost.size_mb:.2f} MB{energy}"


def _worth(quality: Quality) -> str:
    facts = [
        f"validation accuracy {quality.accuracy:.1%}",
        f"drop of {quality.dropped} {quality.drop:.3f}",
        f"loss {quality.loss:.3f}",
        *(f"too large a drop of {measure}" for measure in quality.fell),
    ]
    return ", ".join(facts)


@stage(
    examples=(
        "chestx compress --max-latency-ms 4 --max-size-mb 8 --max-drop 0.02",
        "chestx compress --objective latency --endpoint auroc --runtime openvino",
        "chestx compress --max-size-mb 3 --students mobilenet_v3_small,resnet50:0.5",
    ),
    after="quantize",
)
def compress(
    run: Run,
    *,
    study: StudyDir = Path("study"),
    parent: Parent = BASELINE,
    max_latency_ms: Annotated[float | None, Opt(help="Largest median latency of one image, here.", above=0)] = None,
    max_size_mb: Annotated[float | None, Opt(help="Largest file, in MB of 1,000,000 bytes.", above=0)] = None,
    max_drop: Annotated[float, Opt(help="Largest drop of the endpoint.", minimum=0, maximum=1)] = 0.02,
    endpoint: Annotated[str | None, Opt(help="What may drop; default: accuracy and AUROC.", choices=ENDPOINTS)] = None,
    objective: Annotated[str | None, Opt(help="Minimise this within the limits.", choices=OBJECTIVES)] = None,
    runtime: Annotated[str, Opt(help="Runtime that is timed.", choices=ONNX_RUNTIMES)] = NATIVE["onnx"],
    time_budget: Annotated[
        float, Opt(help="Start no new model after this many minutes.", above=0, identity=False)
    ] = 30.0,
    criteria: Annotated[
        tuple[str, ...],
        Opt(
            help="Pruning criteria to try, in this order.",
            parse=parse_names,
            show=",".join,
            metavar="NAME,...",
        ),
    ] = (),
    guided: Annotated[bool, Opt(help="Channels removed where sensitivity is least compete, too.")] = False,
    students: Annotated[
        tuple[str, ...],
        Opt(
            help="Backbones that compete; NAME:0.5: half as wide.", parse=parse_names, show=",".join, metavar="NAME,..."
        ),
    ] = (),
    fetch: Fetch = False,
    short_epochs: Annotated[int, Opt(help="Epochs of the first short fits.", minimum=1)] = 2,
    finetune_epochs: Annotated[
        int, Opt(help="Epochs of each network that is built.", minimum=1)
    ] = Structured.finetune_epochs,
    round_to: Annotated[int, Opt(help="Keep channels in multiples of this.", minimum=1, maximum=64)] = 8,
    lr: LearningRate = Structured.lr,
    batch_size: BatchSize = 32,
    threads: Threads = None,
    seed: Seed = 42,
    force: Force = False,
) -> CompressRecord:
    """Find the least compression that meets your limits here.

    Untrained copies are timed to find how much to remove. Networks pruned by each criterion, and students, compete in
    short fits with the parent as teacher: the better half is fitted further, and the last two are built and quantized.
    With --guided, networks whose channels were removed by the measured sensitivity compete, too; it is measured first.
    With an objective its cost is minimised within --max-drop, and no other limit is needed. Only validation images
    choose, those of all folds if the study has folds. Every model is stored as a variant, and running the command again
    continues; with --force everything is measured, fitted and built again. Exits with 3 if the limits cannot be met.
    """
    import numpy as np

    began_s = time.perf_counter()
    if max_latency_ms is None and max_size_mb is None and objective is None:
        raise UsageError("there is nothing to search for", "give --max-latency-ms, --max-size-mb or --objective")
    for name in criteria:
        CRITERIA[name]
    _require_measurable(objective, runtime)
    known = {student.name: student for student in (Student.of(text, fetch=fetch) for text in students)}
    target = open_study(study)
    n_threads = threads or available_threads()
    recipe = Structured(
        finetune_epochs=finetune_epochs,
        round_to=round_to,
        floor=FLOOR,
        lr=lr,
        batch_size=batch_size,
        seed=seed,
    )
    folds = open_folds(run, target, parent, recipe, known, threads=n_threads, runtime=runtime, renews=force)
    usual = folds[0].fits.cutting.criterion
    tried = criteria or tuple(dict.fromkeys((usual, *FURTHER_CRITERIA)))
    choices = [ChannelChoice(criterion=criterion) for criterion in tried]
    if guided:
        choices.insert(1, ChannelChoice(criterion=tried[0], method=GUIDED))
        folds = tuple(_guided(run, fold, tried[0], seed, force=force) for fold in folds)
    bounds = Bounds(latency_ms=max_latency_ms, size_mb=max_size_mb, max_drop=max_drop, objective=objective)
    groups = stacked([fold.pair(fold.reference).cells[0] for fold in folds]).images.groups
    models = SearchedModels(
        run=run,
        folds=folds,
        patients=draw_patients(groups, np.random.default_rng(seed)),
        bounds=bounds,
        endpoint=endpoint,
        threads=n_threads,
        runtime=runtime,
    )
    builder = Builder(run=run, models=models, recipe=recipe, deadline_s=began_s + time_budget * 60, force=force)
    space = Space(
        choices=choices,
        students=tuple(known),
        short_epochs=short_epochs,
        full_epochs=finetune_epochs,
    )
    explore(space, bounds, builder)
    if not builder.time_is_up:
        for fold in folds:
            fold.fits.clear()
    costs = models.costs()
    rows = models.rows(costs)
    chosen = _chosen(rows, costs, bounds)
    nearest = min(costs, key=lambda one: bounds.distance(costs[one], models.quality(models.pairs(one))))
    best = rows[chosen or nearest]
    caveats = dict.fromkeys(
        caveat
        for index, fold in enumerate(folds)
        for caveat in uses_models(run, fold.study, [records[index] for records in models.records.values()])
    )
    first_fold = str(folds[0].study.root) if folds[0].name else ""
    rough = [*builder.rough, *(rows[one].variant for one, cost in costs.items() if cost.is_rough)]
    result = CompressRecord(
        stamp=run.stamp(),
        notes=(
            *_notes(best, bounds, rows, parent, len(groups), first_fold, is_chosen=chosen is not None),
            *caveats,
        ),
        parent=parent,
        images=len(groups),
        patients=models.patients.n,
        threads=n_threads,
        max_latency_ms=max_latency_ms,
        max_size_mb=max_size_mb,
        max_drop=max_drop,
        chosen=best.variant if chosen else None,
        nearest=None if chosen else best.variant,
        rows=tuple(rows.values()),
        objective=objective,
        endpoint=endpoint,
        runtime=runtime,
        folds=tuple(fold.name for fold in folds if fold.name),
        short_fits=tuple(builder.short_fits),
    )
    if rough:
        result = result.replace(notes=(_rough(rough, times_decide=result.times_decide), *result.notes))
    if not builder.time_is_up:
        stopped, more = "The search is complete.", ""
    else:
        what = "use a larger --time-budget" if force else "a larger --time-budget continues from here"
        stopped = f"Time is up: {what}."
        more = _with_time(run.line, 2 * time_budget)
    return result.replace(answer=of_search(result, stopped, more, first_fold))


def _with_time(line: str, minutes: float) -> str:
    """Return a command line with another --time-budget."""
    words = shlex.split(line)
    if "--time-budget" in words:
        at = words.index("--time-budget")
        del words[at : at + 2]
    return command_line([*words, "--time-budget", f"{minutes:g}"])


def _guided(run: Run, fold: Fold, criterion: str, seed: int, *, force: bool) -> Fold:
    """Return the fold with the structured sensitivity of its parent, measured unless it is stored.

    Raises StudyError if the stored one is of another criterion: variants may have been made by it.
    """
    about = (run, fold.study, fold.parent, GroupSensitivityRecord)
    try:
        measured = require_sensitivity(*about, fold.name)
    except StudyError:
        measured = None
    where: dict[str, Any] = {
        "study": fold.study.root,
        "structured": True,
        "criterion": criterion,
        "parent": fold.parent.name,
    }
    if measured is not None and measured.record.criterion != criterion:
        other = measured.record.criterion
        raise StudyError(
            f"the sensitivity of {fold.parent.name} was measured with --criterion {other}, not {criterion}",
            f'run "{sensitivity.command_line(**where)}" first, or name {other} first in --criteria',
        )
    if measured is None or force:
        run.make(sensitivity, **where, seed=seed)
        measured = require_sensitivity(*about, fold.name)
    return fold.guided_by(measured)


def _require_measurable(objective: str | None, runtime: str) -> None:
    require_installed(runtime, "or use --runtime onnxruntime")
    if objective == ENERGY and not energy_counters():
        raise UsageError(
            "no energy counter of this processor (RAPL) can be read",
            "use --objective latency, which energy is proportional to while power is constant; on Linux outside a "
            "virtual machine the superuser can make the files energy_uj in /sys/class/powercap readable",
        )


def _chosen(rows: dict[Candidate, CompressRow], costs: dict[Candidate, Cost], bounds: Bounds) -> Candidate | None:
    """Return the model within all limits with the least of the objective, or without one the lowest loss."""

    def key(candidate: Candidate) -> tuple[float, float]:
        loss = rows[candidate].loss
        return (loss if bounds.objective is None else costs[candidate].of(bounds.objective), loss)

    return min((one for one, row in rows.items() if not row.missed), key=key, default=None)


def _rough(models: Sequence[str], *, times_decide: bool) -> str:
    meaning = "The choice may be wrong." if times_decide else "Latencies and the front are rough; the choice is not."
    return (
        f"{NOISY}: {BUSY} while these ran: {', '.join(models)}. {meaning} To time them again, run the same command on "
        "an idle machine, or with --threads."
    )


def _notes(
    best: CompressRow, bounds: Bounds, rows: Sized, parent: str, n_images: int, fold: str, *, is_chosen: bool
) -> tuple[str, ...]:
    """Return what the result means; `fold`: the study in which its command evaluates, for a search over folds."""
    by = f"the least {bounds.objective}" if bounds.objective else "the lowest validation loss"
    if is_chosen:
        conclusion = f"{best.variant} meets all limits, with {by} of those that do."
    else:
        conclusion = (
            f"Not reachable: no variant that was built meets all limits. The nearest is {best.variant}: "
            f"{best.latency_p50_ms:.2f} ms, {best.size_mb:.2f} MB, {best.difference:+.1%} of accuracy and "
            f"{best.auroc_difference:+.3f} of AUROC; it misses {' and '.join(best.missed)}. More --time-budget or "
            "--finetune-epochs may find a better one; a limit may have to be raised."
        )
    low, high = best.drop_interval or (0.0, 0.0)
    return (
        conclusion,
        f"On {n_images} validation images one image is {1 / n_images:.1%}. The drop limit applies to the measured "
        f"values; the 95 % CI of the drop of {best.dropped} of {best.variant} is {low:+.3f} to {high:+.3f}.",
        f"The result of the best of {len(rows)} models on the same images is biased upwards: "
        f'"chestx evaluate {best.variant}{f" --study {quoted(fold)}" if fold else ""}" '
        f"judges it against {parent} on the test images{_use_of_test_images(fold)}.",
    )


def _use_of_test_images(fold: str) -> str:
    if not fold:
        return ", which were not used for selection"
    return (
        " of a fold, but many of these are validation images of other folds and took part in the selection: "
        "only images outside this study judge it without bias"
    )
