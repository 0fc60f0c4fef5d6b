"""`chestx compress`: search pruning and INT8 for the best variant within limits of latency, size and accuracy."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from chestx_cli.commands.prune import prune
from chestx_cli.commands.quantize import quantize
from chestx_cli.compression.cost_probe import ROUNDS, Prober, median_ms, time_latency
from chestx_cli.compression.pruning.channel_removal import Limits
from chestx_cli.compression.pruning.criteria import CRITERIA, usual_criterion
from chestx_cli.compression.pruning.methods import Structured
from chestx_cli.compression.pruning.structured import Cutting
from chestx_cli.compression.search import FP32, INT8, Bounds, Candidate, Cost, Quality, explore
from chestx_cli.core.command import Run, stage
from chestx_cli.core.errors import StudyError, UsageError
from chestx_cli.core.machine import available_threads
from chestx_cli.core.options import Opt, parse_names
from chestx_cli.core.printable import counted
from chestx_cli.core.shared_options import BatchSize, Force, LearningRate, Parent, Seed, StudyDir, Threads
from chestx_cli.evaluation.endpoints import compare
from chestx_cli.evaluation.pareto import on_front
from chestx_cli.evaluation.predictions import Predictions, images_of, predictions_of
from chestx_cli.evaluation.result_tables import auroc_gap
from chestx_cli.evaluation.statistics.auroc import auroc_of
from chestx_cli.evaluation.statistics.intervals import Patients, draw_patients, proportion_interval
from chestx_cli.evaluation.statistics.outcome import log_loss, log_odds_of
from chestx_cli.evaluation.variant_tables import both_classes
from chestx_cli.evaluation.verdicts import Margins, guards_of
from chestx_cli.inference.onnx_export import PERCENT, model_for
from chestx_cli.inference.prediction import predict_split
from chestx_cli.inference.thresholds import freeze
from chestx_cli.networks.backbones import output_layer
from chestx_cli.networks.training_data import FitData, read_fit_data
from chestx_cli.networks.weights.serialization import load_network
from chestx_cli.records.answers import BROKEN
from chestx_cli.records.commands import CompressRecord, CompressRow
from chestx_cli.records.split import VAL
from chestx_cli.records.variant import BASELINE, VariantRecord
from chestx_cli.reporting.answers import of_search
from chestx_cli.store.directory import Study, open_study
from chestx_cli.store.lineage import uses_models
from chestx_cli.store.locks import hold
from chestx_cli.store.variants import derived_name, open_parent

if TYPE_CHECKING:
    from chestx_cli.store.split import Split

# Tried after the network's usual criterion: the norm of the weights, and the estimated change of the loss.
FURTHER_CRITERIA = ("l2", "taylor")
FLOOR = 0.05


@dataclass(kw_only=True)
class Builder:
    """Builds candidates with the same commands a user would run, and measures them on the validation images."""

    run: Run
    study: Study
    split: Split
    parent: VariantRecord
    reference: Predictions
    patients: Patients
    prober: Prober
    cutting: Cutting
    recipe: Structured
    deadline_s: float
    bounds: Bounds
    threads: int
    force: bool
    records: dict[Candidate, VariantRecord] = field(default_factory=dict)
    predictions: dict[str, Predictions] = field(default_factory=dict)
    longest_s: dict[str | None, float] = field(default_factory=dict)
    time_is_up: bool = False

    def cost(self, percent: int, criterion: str) -> dict[str, Cost]:
        """Measure and report the cost of an untrained network, by `FP32` and `INT8`."""
        title = f"Timing an untrained network with {percent} % of the MACs removed"
        with self.run.reporter.progress(title, PERCENT) as advance:
            cost = self.prober.cost(percent, replace(self.cutting, criterion=criterion), advance)
        fp32, int8 = cost[FP32], cost[INT8]
        self.run.reporter.note(
            f"{percent} % of the MACs removed by {criterion}: FP32 {fp32.latency_ms:.2f} ms, {fp32.size_mb:.2f} MB; "
            f"INT8 {int8.latency_ms:.2f} ms, {int8.size_mb:.2f} MB"
        )
        return cost

    def nearest(self, percent: int, criterion: str) -> int:
        """Return the percentage of MACs nearest to `percent` that a criterion can remove."""
        with self.run.reporter.progress(f"Choosing channels for {percent} % of the MACs by {criterion}", None):
            return self.prober.nearest(percent, replace(self.cutting, criterion=criterion))

    def may_begin(self, candidate: Candidate) -> bool:
        """Return whether a candidate exists, or would end in time if it takes as long as the longest of its kind."""
        if (self.study.variant(self.name_of(candidate)) / "variant.json").exists() and not self.force:
            return True
        left_s = self.deadline_s - time.perf_counter()
        enough = left_s > self.longest_s.get(candidate.int8, 0.0)
        if not enough:
            self.time_is_up = True
            self.run.reporter.note(f"no time left for {self.name_of(candidate)}: give more --time-budget to continue")
        return enough

    def build(self, candidate: Candidate) -> Quality:
        """Build a candidate or reuse an existing one; report and return its quality."""
        started_s = time.perf_counter()
        record = freeze(
            self.run,
            self.study,
            self.split,
            self._made(candidate),
            rule=self.parent.operating_rule,
            temperature=self.parent.temperature_fit is not None,
            threads=self.threads,
        )
        self.records[candidate] = record
        self.predictions[record.name] = validation_of(self.run, self.study, self.split, record, self.threads)
        took_s = time.perf_counter() - started_s
        self.longest_s[candidate.int8] = max(took_s, self.longest_s.get(candidate.int8, 0.0))
        quality = quality_of(self.reference, self.predictions[record.name], self.patients)
        left_min = (self.deadline_s - time.perf_counter()) / 60
        facts = [
            f"validation accuracy {quality.accuracy:.1%}",
            f"drop of {quality.dropped} {quality.drop:.3f}",
            f"loss {quality.loss:.3f}",
            *(f"too large a drop of {measure}" for measure in quality.fell),
            f"{record.model_bytes / 1e6:.2f} MB",
        ]
        left = counted(max(round(left_min), 0), "minute")
        self.run.reporter.note(f"{record.name}: {', '.join(facts)}; {left} left")
        return quality

    def name_of(self, candidate: Candidate) -> str:
        """Return the name of a candidate's variant, by which a later run finds it."""
        pruned = derived_name(self.parent, f"structured-{candidate.percent}-{candidate.criterion}")
        if candidate.int8 is None:
            return pruned
        suffix = f"{candidate.int8}-int8"
        return f"{pruned}-{suffix}" if candidate.percent else derived_name(self.parent, suffix)

    def _made(self, candidate: Candidate) -> VariantRecord:
        name, recipe = self.name_of(candidate), self.recipe
        if candidate.int8 is None:
            return self.run.make(
                prune,
                study=self.study.root,
                method="structured",
                amount=candidate.percent / 100,
                finetune_epochs=recipe.finetune_epochs,
                criterion=candidate.criterion,
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
        pruned = Candidate(percent=candidate.percent, criterion=candidate.criterion, int8=None)
        source = self.name_of(pruned) if candidate.percent else self.parent.name
        return self.run.make(
            quantize,
            study=self.study.root,
            method=candidate.int8,
            parent=source,
            name=name,
            seed=recipe.seed,
            force=self.force,
        )


@stage(examples=("chestx compress --max-latency-ms 4 --max-size-mb 8 --max-drop 0.02",), after="quantize")
def compress(
    run: Run,
    *,
    study: StudyDir = Path("study"),
    parent: Parent = BASELINE,
    max_latency_ms: Annotated[float | None, Opt(help="Largest median latency of one image, here.", above=0)] = None,
    max_size_mb: Annotated[float | None, Opt(help="Largest file, in MB of 1,000,000 bytes.", above=0)] = None,
    max_drop: Annotated[float, Opt(help="Largest drop in accuracy, and in AUROC.", minimum=0, maximum=1)] = 0.02,
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
    finetune_epochs: Annotated[int, Opt(help="Epochs of fine-tuning of each pruned network.", minimum=1)] = 8,
    round_to: Annotated[int, Opt(help="Keep channels in multiples of this.", minimum=1, maximum=64)] = 8,
    lr: LearningRate = 1e-4,
    batch_size: BatchSize = 32,
    threads: Threads = None,
    seed: Seed = 42,
    force: Force = False,
) -> CompressRecord:
    """Find the least compression that meets your limits here.

    Untrained copies are timed to find how much to remove; each criterion then prunes to that width, and the network is
    fine-tuned with the parent as teacher and quantized. Only validation images choose. Every model is stored as a
    variant, and running the command again continues from those that exist. Exits with 3 if the limits cannot be met.
    """
    import numpy as np

    if max_latency_ms is None and max_size_mb is None:
        raise UsageError("there is nothing to search for", "give --max-latency-ms or --max-size-mb")
    for name in criteria:
        CRITERIA[name]
    began_s = time.perf_counter()
    target = open_study(study)
    split, source = open_parent(run, target, parent)
    hold(run, target.root, f"the compression of {parent}")
    n_threads = threads or available_threads()
    network = load_network(target, source)
    data: FitData = read_fit_data(target, split, source.preprocessing, run.reporter)
    usual = usual_criterion(network)
    bounds = Bounds(latency_ms=max_latency_ms, size_mb=max_size_mb, max_drop=max_drop)
    reference = validation_of(run, target, split, source, n_threads)
    if not both_classes(reference):
        raise StudyError("the validation split lacks images of one class", "split again with a larger share of it")
    builder = Builder(
        run=run,
        study=target,
        split=split,
        parent=source,
        reference=reference,
        patients=draw_patients(reference.images.groups, np.random.default_rng(seed)),
        prober=Prober(
            network=network,
            backbone=source.backbone,
            n_classes=len(source.classes),
            data=data,
            folder=target.cache,
            threads=n_threads,
        ),
        cutting=Cutting(
            criterion=usual,
            limits=Limits(round_to=round_to, floor=FLOOR),
            kept_layer=output_layer(network),
            device="cpu",
            precision="fp32",
            seed=seed,
        ),
        recipe=Structured(
            finetune_epochs=finetune_epochs,
            round_to=round_to,
            floor=FLOOR,
            distill=True,
            lr=lr,
            batch_size=batch_size,
            seed=seed,
        ),
        deadline_s=began_s + time_budget * 60,
        bounds=bounds,
        threads=n_threads,
        force=force,
    )
    explore(criteria or tuple(dict.fromkeys((usual, *FURTHER_CRITERIA))), bounds, builder)
    rows, patients = _rows(builder), builder.patients
    within_limits = [row for row in rows if not row.missed]
    chosen = min(within_limits, key=lambda row: row.loss).variant if within_limits else None
    nearest = _nearest(rows, builder)
    caveats = uses_models(run, target, [source, *builder.records.values()])
    result = CompressRecord(
        stamp=run.stamp(),
        notes=(*_notes(rows, chosen, nearest, parent, len(reference.images.ids)), *caveats),
        parent=parent,
        images=len(reference.images.ids),
        patients=patients.n,
        threads=n_threads,
        max_latency_ms=max_latency_ms,
        max_size_mb=max_size_mb,
        max_drop=max_drop,
        chosen=chosen,
        nearest=None if chosen else nearest,
        rows=rows,
    )
    stopped = (
        "Time is up: a larger --time-budget continues from here." if builder.time_is_up else "The search is complete."
    )
    return result.replace(answer=of_search(result, stopped))


def _nearest(rows: tuple[CompressRow, ...], builder: Builder) -> str:
    """Return the variant that misses the limits by least."""
    reference, bounds = builder.reference, builder.bounds

    def distance(row: CompressRow) -> float:
        predictions = builder.predictions.get(row.variant, reference)
        cost = Cost(latency_ms=row.latency_p50_ms, size_mb=row.size_mb)
        return bounds.distance(cost, quality_of(reference, predictions, builder.patients))

    return min(rows, key=distance).variant


def validation_of(run: Run, study: Study, split: Split, record: VariantRecord, threads: int) -> Predictions:
    """Return a variant's predictions for the validation images."""
    rows = split.indices(VAL)
    probability = predict_split(study, split, record, rows, run.reporter, threads=threads)[:, split.positive]
    return predictions_of(images_of(split, rows), probability, record.threshold)


def quality_of(reference: Predictions, predictions: Predictions, patients: Patients) -> Quality:
    """Return a variant's accuracy and loss, its drop, and the measures that fell, against the reference."""
    accuracy, reference_accuracy = float(predictions.correct.mean()), float(reference.correct.mean())
    gap = auroc_gap(reference, predictions, patients)
    assert gap is not None  # noqa: S101 - there are validation images of both classes
    guards = guards_of("", reference, predictions, patients, Margins(), gap)
    return Quality(
        accuracy=accuracy,
        drop=max(reference_accuracy - accuracy, -gap.value),
        dropped="accuracy" if reference_accuracy - accuracy >= -gap.value else "AUROC",
        loss=log_loss(log_odds_of(predictions.probability), predictions.is_positive),
        fell=tuple(guard.measure for guard in guards if guard.state == BROKEN),
    )


def _rows(builder: Builder) -> tuple[CompressRow, ...]:
    """Return a row for the parent and each candidate, timed in one interleaved run."""
    import numpy as np

    parent, reference, patients = builder.parent, builder.reference, builder.patients
    models = [(Candidate(percent=0, criterion=None, int8=None), parent), *builder.records.items()]
    predictions = {**builder.predictions, parent.name: reference}
    files = [model_for(builder.run, builder.study, builder.split, record, "onnx") for _, record in models]
    with builder.run.reporter.progress("Timing all variants", ROUNDS * len(files)) as advance:
        timed = time_latency(files, parent.preprocessing.image_size_px, builder.threads, advance)
    latencies = [median_ms(rounds) for rounds in timed]
    points = []
    for (_, record), latency in zip(models, latencies, strict=True):
        builder.run.uses(f"{record.name}/{record.model_file}", record.model_sha256)
        worth = quality_of(reference, predictions[record.name], patients)
        points.append((latency, record.model_bytes / 1e6, -worth.accuracy))
    front = on_front(points)
    rows = []
    for (candidate, record), (latency, size_mb, _), is_on_front in zip(models, points, front, strict=True):
        predicted = predictions[record.name]
        worth = quality_of(reference, predicted, patients)
        paired = compare(reference.correct, predicted.correct, patients, builder.bounds.max_drop)
        interval = proportion_interval(predicted.correct, np.ones(len(predicted.decision), dtype=bool), patients)
        assert interval is not None  # noqa: S101 - there are validation images
        auroc, reference_auroc = (auroc_of(side.is_positive, side.probability).value for side in (predicted, reference))
        rows.append(
            CompressRow(
                variant=record.name,
                criterion=candidate.criterion,
                int8=candidate.int8,
                macs_removed=1 - record.macs / parent.macs,
                latency_p50_ms=latency,
                speedup=latencies[0] / latency,
                size_mb=size_mb,
                accuracy=worth.accuracy,
                accuracy_interval=interval.bounds,
                lost=paired.lost,
                won=paired.won,
                difference=paired.difference,
                difference_interval=paired.interval.bounds,
                p=paired.p,
                auroc=auroc,
                auroc_difference=auroc - reference_auroc,
                loss=worth.loss,
                is_on_front=is_on_front,
                missed=builder.bounds.missed(Cost(latency_ms=latency, size_mb=size_mb), worth),
                model_sha256=record.model_sha256,
            )
        )
    return tuple(rows)


def _notes(
    rows: tuple[CompressRow, ...], chosen: str | None, nearest: str, parent: str, n_images: int
) -> tuple[str, ...]:
    by_name = {row.variant: row for row in rows}
    if chosen:
        conclusion = f"{chosen} meets all limits, with the lowest validation loss of those that do."
    else:
        row = by_name[nearest]
        conclusion = (
            f"Not reachable: no variant that was built meets all limits. The nearest is {nearest}: "
            f"{row.latency_p50_ms:.2f} ms, {row.size_mb:.2f} MB, {row.difference:+.1%} of accuracy and "
            f"{row.auroc_difference:+.3f} of AUROC; it misses {' and '.join(row.missed)}. More --time-budget or "
            "--finetune-epochs may find a better one; a limit may have to be raised."
        )
    best = by_name[chosen or nearest]
    return (
        conclusion,
        f"On {n_images} validation images one image is {1 / n_images:.1%}. The drop limit applies to the measured "
        f"values; the 95 % CI of the difference of {best.variant} is {best.difference_interval[0]:+.1%} to "
        f"{best.difference_interval[1]:+.1%}.",
        f"The result of the best of {len(rows)} models on the same images is biased upwards: "
        f'"chestx evaluate {best.variant}" '
        f"judges it against {parent} on the test images, which were not used for selection.",
    )
