"""Choosing a variant's operating point and temperature on the validation images, and storing them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from chestx_cli.core.errors import StudyError
from chestx_cli.evaluation.learned import findings
from chestx_cli.evaluation.predictions import images_of, predictions_of
from chestx_cli.evaluation.statistics.calibration import fit_temperature
from chestx_cli.evaluation.statistics.operating_points import choose_threshold, parse_rule
from chestx_cli.evaluation.statistics.outcome import log_loss, log_odds_of_classes, sigmoid
from chestx_cli.inference.prediction import predict_split
from chestx_cli.records.variant import FIXED, OperatingPoint, TemperatureFit
from chestx_cli.store.caveats import caveat
from chestx_cli.store.documents import write_record
from chestx_cli.store.locks import hold

if TYPE_CHECKING:
    from chestx_cli.core.command import Run
    from chestx_cli.evaluation.predictions import Predictions
    from chestx_cli.records.variant import VariantRecord
    from chestx_cli.store.directory import Study
    from chestx_cli.store.split import Split


def freeze(
    run: Run,
    study: Study,
    split: Split,
    record: VariantRecord,
    *,
    rule: str,
    temperature: bool,
    threads: int | None,
) -> VariantRecord:
    """Choose a variant's threshold by `rule`, fit a temperature if requested, store both; return the variant.

    Values that are already stored stay. The temperature is fitted first, because the threshold applies to probabilities
    after temperature scaling. Raises StudyError if the validation split lacks a class.
    """
    rule_text = str(parse_rule(rule))
    fit = temperature and record.temperature_fit is None
    if not fit and (record.operating_point is not None or rule_text == FIXED) and record.operating_rule == rule_text:
        return record
    rows = split.indices("val")
    truth = split.is_positive(rows)
    if not 0 < int(truth.sum()) < len(truth):
        raise StudyError(
            "the validation split lacks images of one class: no operating point can be chosen on it",
            "split again with a larger validation share, or leave --operating-point at 0.5",
        )
    hold(run, study.root, f"variant {record.name}")
    if study.read_variant(record.name) != record:
        raise StudyError(f"variant {record.name!r} was changed by another command just now", "run the command again")
    bare = record.replace(temperature=1.0)
    probabilities = predict_split(study, split, bare, rows, run.reporter, threads=threads)
    log_odds = log_odds_of_classes(probabilities, split.positive)
    fitted = fit_temperature(log_odds, truth) if fit else None
    if fit and fitted is None:
        run.reporter.warn(
            f"no temperature fits {record.name}: its log-odds separate the classes of the {len(rows)} validation "
            "images, or carry no information about them; its temperature is unchanged"
        )
    if fitted is not None:
        record = record.replace(
            temperature=fitted,
            temperature_fit=TemperatureFit(
                images=len(rows),
                log_loss_before=log_loss(log_odds, truth),
                log_loss_after=log_loss(log_odds / fitted, truth),
            ),
        )
    probability = sigmoid(log_odds / record.temperature)
    threshold = choose_threshold(parse_rule(rule), truth, probability)
    called = probability >= threshold
    record = dataclasses.replace(
        _judged_at(record, split, predictions_of(images_of(split, rows), probability, threshold)),
        threshold=threshold,
        operating_point=OperatingPoint(
            rule=rule_text,
            images=len(rows),
            sensitivity=float(called[truth == 1].mean()),
            specificity=float((~called)[truth == 0].mean()),
        ),
    )
    with study.results_of(record) as folder:
        write_record(folder / "variant.json", record)
    return record


def _judged_at(record: VariantRecord, split: Split, predictions: Predictions) -> VariantRecord:
    """Return a trained variant with its learning checks repeated on new predictions; other variants unchanged."""
    if record.parent is not None:
        return record
    before, after = record.unproven, findings([predictions], split.class_pair, "validation images")
    kept = [note for note in record.notes if note not in [caveat(record.name, finding) for finding in before]]
    return record.replace(unproven=after, notes=(*kept, *(caveat(record.name, finding) for finding in after)))
