"""The folded sections of the page of a study over folds and seeds."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from chestx_cli.core.printable import paragraph
from chestx_cli.core.shared_options import LOWEST
from chestx_cli.evaluation.endpoints import ACCURACY, endpoint_of
from chestx_cli.records.variant import LOWEST_LOSS, NEAR_LOWEST_LOSS
from chestx_cli.reporting.page.blocks import (
    UNFOLDED_ROWS,
    Block,
    Bullets,
    Drawn,
    Section,
    Shown,
    Text,
    make_table,
    pairs_table,
    percent,
    table_of,
)
from chestx_cli.reporting.page.methods import initialised, input_text, software_text, speed_text
from chestx_cli.reporting.page.results import flips_gallery

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chestx_cli.core.record import Document
    from chestx_cli.records.cells import PlanDocument, StudyRecord
    from chestx_cli.reporting.page.pooled import PooledResults

# From the page's folder to the study's.
STUDY_FROM_PAGE = ".."


def build_pooled_sections(pooled: PooledResults, drawn: Drawn) -> tuple[Section, ...]:
    """Return the folded sections; they remove their figures from `drawn`."""
    stamps = pooled.stamps
    sections = [
        Section(title="All variants", blocks=tuple(_variants(pooled)), stamps=stamps),
        Section(title="Endpoint against latency", blocks=tuple(_front(drawn)), stamps=stamps),
        Section(title="Seeds", blocks=tuple(_seeds(pooled.record, drawn)), stamps=stamps),
        Section(title="Noise between trainings", blocks=tuple(_noise(pooled.record)), stamps=stamps),
        Section(title="Changed decisions", blocks=tuple(_changed_decisions(pooled, drawn)), stamps=stamps),
        Section(title="Plan", blocks=tuple(_plan(pooled, drawn))),
        Section(title="Cells", blocks=tuple(_cells(pooled.record)), stamps=stamps),
        Section(title="Methods, ready to paste", blocks=tuple(_methods(pooled))),
        Section(title="Settings and environment", blocks=tuple(_settings(pooled))),
        Section(title="Limits", blocks=(Bullets(items=_limits(pooled)),)),
    ]
    return tuple(section for section in sections if section.blocks)


def _variants(pooled: PooledResults) -> Iterator[Block]:
    record = pooled.record
    yield table_of(
        f"Each variant on {endpoint_of(record.endpoint).noun}, pooled over folds and seeds",
        record.rows,
        without=("difference", "difference_interval", "verdict", "needed_images", "seeds_holding"),
    )
    if record.rates:
        yield table_of("Sensitivity and specificity at the stored thresholds, pooled likewise", record.rates)


def _front(drawn: Drawn) -> list[Block]:
    return drawn.take("front") or [
        Text(text='Fewer than two variants are timed with the plan\'s options: run "chestx study".', tone="hint")
    ]


def _seeds(record: StudyRecord, drawn: Drawn) -> Iterator[Block]:
    yield from drawn.take("seeds")
    caption = f"Each seed by itself, over its {record.folds} folds; verdicts corrected over the variants of the seed"
    yield table_of(caption, record.seed_rows, folded=len(record.seed_rows) > UNFOLDED_ROWS)


def _noise(record: StudyRecord) -> Iterator[Block]:
    if not record.noise:
        return
    yield Text(
        text=(
            "Two trainings of one recipe that differ in the seed alone, on the same images. No difference here is an "
            "effect of compression; the largest between two baselines is the seed noise floor."
        )
    )
    yield make_table(
        "The second training less the first, on the declared endpoint",
        [
            ("Two trainings of", "", [row.variant for row in record.noise]),
            ("Seeds", "", [f"{first} and {second}" for first, second in (row.seeds for row in record.noise)]),
            ("Difference", "+.4f", [row.difference for row in record.noise]),
            ("95 %", "+.4f", [row.difference_interval for row in record.noise]),
        ],
        folded=len(record.noise) > UNFOLDED_ROWS,
    )


def _changed_decisions(pooled: PooledResults, drawn: Drawn) -> Iterator[Block]:
    record, split = pooled.record, pooled.cell.split
    yield Text(
        text=(
            "An image is listed where a variant decides otherwise than the baseline in more than half of the seeds "
            "(Hooker et al., What Do Compressed Deep Neural Networks Forget?, 2019)."
        )
    )
    class_of = {image_id: split.classes[split.labels[row]] for row, image_id in enumerate(split.ids.tolist())}
    for name in (row.variant for row in record.rows if row.difference is not None):
        own = [row for row in record.exemplars if row.variant == name]
        if not own:
            yield Text(text=f"{name}: no image is decided otherwise in most seeds.")
            continue
        extra: list[Shown] = [
            ("Class", "", [class_of.get(row.image_id, "") for row in own]),
            *drawn.files(split, [row.image_id for row in own]),
        ]
        yield table_of(
            f"{name}: {len(own)} of {record.images:,} images decided otherwise in most seeds",
            own,
            without=("variant",),
            extra=extra,
            folded=len(own) > UNFOLDED_ROWS,
        )
        yield from flips_gallery(pooled.cell, name, drawn, of=len(own))


def _plan(pooled: PooledResults, drawn: Drawn) -> Iterator[Block]:
    plan, record = pooled.plan, pooled.record
    document = replace(plan.content, data=plan.document.data) if drawn.show_paths else plan.content
    yield pairs_table(
        "What was declared",
        [
            ("Declared on", plan.declared),
            ("SHA-256 of the plan", plan.sha256),
            *((name, value) for name, value in _flat(document)),
        ],
    )
    if record.amendments:
        yield table_of("Changes made after test images had been predicted", record.amendments)
    else:
        yield Text(text="Nothing of it was changed after the first test image was predicted.")


def _flat(document: PlanDocument) -> Iterator[tuple[str, str]]:
    """Yield each option of a plan, and each variant as its steps, as texts."""
    yield from ((name, _text(value)) for name, value in document.own.items())
    for command, options in document.tables.items():
        yield from ((f"{command} {name}", _text(value)) for name, value in options.items())
    for variant in document.variants:
        yield f"variant {variant.name}", ", then ".join(map(_step, variant.steps))


def _step(step: Document) -> str:
    return "; ".join(f"{name} = {_text(value)}" for name, value in step.items())


def _methods_of(steps: Sequence[Document]) -> str:
    """Return the commands of a variant's steps with their methods; a step's first key is its command."""
    return ", then ".join(f"{command} {step[command]}" for step in steps for command in list(step)[:1])


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return value if isinstance(value, str) else json.dumps(value)


def _cells(record: StudyRecord) -> Iterator[Block]:
    if not record.cell_rows:
        return
    yield Text(
        text=(
            "A cell is one fold with one seed, an ordinary study directory: each name links to it, and every command "
            "works in it."
        )
    )
    rows, endpoint = record.cell_rows, endpoint_of(record.endpoint)
    spec = ".1%" if endpoint.is_share else ".3f"
    table = make_table(
        f"{endpoint.noun[0].upper()}{endpoint.noun[1:]} of each variant on the images that a cell tests",
        [
            ("Cell", "", [row.cell for row in rows]),
            ("Images", ",", [row.images for row in rows]),
            ("Patients", ",", [row.patients for row in rows]),
            *((own.variant, spec, [row.estimates.get(own.variant) for row in rows]) for own in record.rows),
        ],
    )
    yield table.with_links(tuple(f"{STUDY_FROM_PAGE}/{row.cell}/" for row in rows))


def _methods(pooled: PooledResults) -> list[Block]:
    paragraphs = (_data(pooled), _models(pooled), _statistics(pooled.record), speed_text(pooled.cell))
    return [Text(text=text) for text in paragraphs if text]


def _data(pooled: PooledResults) -> str:
    record = pooled.record
    return paragraph(
        f"We used {record.images:,} chest radiographs of {record.patients:,} patients, divided into {record.folds} "
        "folds by patient.",
        "" if record.positives is None else f"Of these images, {record.positives:,} are {record.positive}.",
        "Every image was tested once per seed, by a model trained without the fold that contains it.",
        *pooled.cell.split_caveats,
    )


def _models(pooled: PooledResults) -> str:
    record, baseline = pooled.record, pooled.cell.baseline
    if baseline is None:
        return ""
    own, trainings = baseline.record, record.folds * len(record.seeds)
    sentences = [
        f"The classifier is a {own.backbone} with {own.parameters:,} parameters on {input_text(own.preprocessing)}."
    ]
    if own.training:
        kept_loss = LOWEST_LOSS if own.options.get("keep", LOWEST) == LOWEST else NEAR_LOWEST_LOSS
        sentences.append(
            f"It was {initialised(own.training)} and trained {trainings} times, once per fold and seed; of each "
            f"training an epoch of {kept_loss} was kept."
        )
    if variants := pooled.plan.content.variants:
        compressed = ", ".join(f"{variant.name} ({_methods_of(variant.steps)})" for variant in variants)
        sentences.append(f"Compressed variants, made anew in each cell: {compressed}.")
    return " ".join([*sentences, software_text(record.stamp)])


def _statistics(record: StudyRecord) -> str:
    """Return how verdicts came about; the methods are those of docs/statistics.md."""
    sentences = [
        _comparison_sentence(record),
        _interval_sentence(record),
        "p values are corrected over all variants (Holm 1979).",
    ]
    if record.noise_floor is not None:
        largest = _level(record, record.noise_floor)
        sentences.append(f"The largest difference between two trainings of the baseline was {largest}.")
    return " ".join(sentences)


def _comparison_sentence(record: StudyRecord) -> str:
    noun, plan = endpoint_of(record.endpoint).noun, f"(SHA-256 {record.plan_sha256[:12]})"
    compared = f"Variants were compared with the baseline by {noun} with a non-inferiority margin of {record.margin:g}"
    if record.amendments:
        return f"{compared}, changed after test images had been predicted, as listed under Plan {plan}."
    return f"{compared}, declared and stored with its hash before the first test image was predicted {plan}."


def _interval_sentence(record: StudyRecord) -> str:
    if record.endpoint == ACCURACY:
        return (
            "Paired differences have Tango's score interval (Tango 1998) on the effective number of images, where "
            "predictions of one image under several seeds count as images of one patient."
        )
    if endpoint_of(record.endpoint).difference:
        return (
            "Areas under the ROC curve were computed within folds and averaged over seeds and folds; their difference "
            "has the interval of Zou and Yue (2013) from DeLong's variance (DeLong et al. 1988), with patients as "
            "clusters (Obuchowski 1997)."
        )
    return (
        "Values were computed within folds and averaged over seeds and folds; the variance of their difference is "
        "that of influence values summed by patient (Liang and Zeger 1986)."
    )


def _level(record: StudyRecord, value: float) -> str:
    return percent(value) if endpoint_of(record.endpoint).is_share else f"{value:.3f}"


def _settings(pooled: PooledResults) -> Iterator[Block]:
    record, plan = pooled.record, pooled.plan
    yield make_table(
        "Commands",
        [
            ("What", "", ["the plan", "the results", "this page"]),
            ("Command", "", [plan.stamp.command, record.stamp.command, pooled.command]),
            ("When", "", [plan.stamp.created, record.stamp.created, "now"]),
        ],
        styles={"Command": "code"},
    )
    yield pairs_table("Environment of the results", list(record.stamp.environment.items()))
    inputs = record.stamp.inputs
    yield make_table(
        "SHA-256 of the models and predictions of all cells",
        [("File", "", list(inputs)), ("SHA-256", "", list(inputs.values()))],
        styles={"SHA-256": "code"},
        folded=len(inputs) > UNFOLDED_ROWS,
    )


def _limits(pooled: PooledResults) -> tuple[str, ...]:
    record = pooled.record
    limits = [
        "Nothing here has been validated for use on patients.",
        f"All {record.images:,} images are of one source: intervals hold for patients drawn like these "
        f"{record.patients:,}.",
        "The verdict is on a recipe, and every cell holds another model made by it: before one is used, it has to be "
        "tested on images of the place of use.",
        f"Verdicts are on {endpoint_of(record.endpoint).noun}; the 95 % intervals beside them are not simultaneous.",
        *(note for note in record.notes if note not in pooled.caveats and note != pooled.noise),
    ]
    return tuple(limits)
