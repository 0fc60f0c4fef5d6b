"""The CLAIM checklist (Mongan et al., Radiology: AI 2, 2020, e200029; update: Tejani et al., 6, 2024, e240300).

The items are numbered as in 2020. Those that the study's records answer are filled in; the others are listed for the
author.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.core.printable import counted
from chestx_cli.data.film_audit import VALUE_RANGE
from chestx_cli.evaluation.results import StudyResults
from chestx_cli.records.preprocessing import RESIZED, SQUASH
from chestx_cli.reporting.page.blocks import Block, Text, make_table
from chestx_cli.reporting.page.results import evaluations

if TYPE_CHECKING:
    from chestx_cli.records.split import SplitRecord
    from chestx_cli.reporting.page.blocks import Drawn

LEFT_TO_THE_AUTHOR = (
    "1 title, 2 abstract, 3 background and intended use, 4 objectives and hypotheses, 5 prospective or retrospective, "
    "6 study goal, 8 eligibility criteria, 10 selection of subsets, 11 definitions of data elements, 12 "
    "de-identification, 13 missing data, 14 to 18 the reference standard (definition, rationale, annotators, tools, "
    "variability), 19 how the sample size was decided on, 27 ensembles (chestx makes none), 31 explanations, "
    "33 flow of participants, 34 demographic and clinical characteristics, 39 implications for practice, "
    "40 registration, 41 protocol, 42 funding"
)


def claim(results: StudyResults, drawn: Drawn) -> list[Block]:  # noqa: ARG001 - every section has this signature
    """Return the items that the study's records answer, and a list of the others."""
    items = [*_data_items(results), *_model_items(results), *_result_items(results)]
    return [
        Text(
            text="CLAIM is the Checklist for Artificial Intelligence in Medical Imaging (Mongan et al. 2020, "
            "updated by "
            "Tejani et al. 2024); the numbers are those of 2020."
        ),
        make_table(
            "Items that this report answers",
            [
                ("Item", "", [str(number) for number, _, _ in items]),
                ("What it asks for", "", [what for _, what, _ in items]),
                ("Answer", "", [answer for _, _, answer in items]),
            ],
            styles={"What it asks for": "prose", "Answer": "prose"},
        ),
        Text(text=f"Left to the author: {LEFT_TO_THE_AUTHOR}."),
    ]


Item = tuple[int, str, str]


def _value_range(record: SplitRecord) -> str:
    """Return the value range from which grey of more than 8 bits was scaled; empty if there is none."""
    return "".join(f", {row.matter.lower()} {row.taken_as}" for row in record.taken if row.matter == VALUE_RANGE)


def _data_items(results: StudyResults) -> list[Item]:
    record = results.split_record
    preprocessing = results.variants[0].record.preprocessing if results.variants else None
    rules = ", ".join(f"{row.rule} ({row.images:,} images)" for row in record.group_rules)
    parts = ", ".join(f"{row.images:,} {row.label} in {row.split}" for row in record.rows)
    side = f"{preprocessing.image_size_px}×{preprocessing.image_size_px}" if preprocessing else "network"
    resized = RESIZED[preprocessing.resize if preprocessing else SQUASH]
    caveats = results.split_caveats
    return [
        (7, "Data sources", f"{record.images:,} images of {record.patients:,} patients ({record.layout})."),
        (
            9,
            "Preprocessing",
            f"8-bit grey{_value_range(record)}, {resized} of {side} pixels by bilinear resampling, ImageNet's "
            f"normalisation; stored with every variant. {len(record.bad_images):,} images could not be read and "
            "were left out.",
        ),
        (20, "How data were assigned to partitions", f"{record.layout}; {parts}. Command: {record.stamp.command}."),
        (
            21,
            "Level at which partitions are disjoint",
            f"Patient, from: {rules}. {' '.join(caveats) or 'No patient is in more than one part.'}",
        ),
    ]


def _model_items(results: StudyResults) -> list[Item]:
    if not results.baseline:
        return []
    record, training = results.baseline.record, results.baseline.record.training
    environment = record.stamp.environment
    software = ", ".join(
        f"{name} {environment[name]}" for name in ("chestx-cli", "torch", "python") if name in environment
    )
    items: list[Item] = [
        (
            22,
            "Model",
            f"{record.backbone} with {record.parameters:,} parameters, {record.macs / 1e9:.2f} GMACs; one image "
            f"in, the "
            f"probabilities of {' and '.join(record.classes)} out. Compressed variants: "
            f"{', '.join(v.name for v in results.variants if v is not results.baseline) or 'none'}.",
        ),
        (23, "Software", f"{software}; see Settings and environment."),
    ]
    if training:
        items += [
            (24, "Initialisation", training.initial_weights),
            (
                25,
                "Training",
                f"{counted(len(training.epochs), 'epoch')} on {training.device} in {training.precision}; options, "
                f"augmentation and "
                f"every epoch under Training of the baseline. Command: {record.stamp.command}.",
            ),
            (26, "Selection of the final model", f"Epoch {training.best_epoch}, of {training.kept_loss}."),
        ]
    return items


def _result_items(results: StudyResults) -> list[Item]:
    if not any(v.evaluation for v in results.variants):
        return []
    n, patients = results.test_size()
    measured = ", ".join(v.name for v in results.variants if v.sensitivity) or "not measured"
    others = list(dict.fromkeys(e.split for v in results.variants for e in v.externals))
    columns = list(dict.fromkeys(row.column for e in evaluations(results) for row in e.subgroups))
    return [
        (
            28,
            "Measures of performance",
            "Accuracy, sensitivity, specificity, predictive values, AUROC, average precision, calibration, net "
            "benefit.",
        ),
        (
            29,
            "Uncertainty and significance",
            "95 % intervals of accuracy, sensitivity, specificity, predictive values, AUROC, calibration slope and "
            "ECE; paired exact tests, Holm's correction, non-inferiority at a margin. See Test results.",
        ),
        (
            30,
            "Robustness or sensitivity analysis",
            f"Pruning sensitivity per layer: {measured}. Subgroups: {', '.join(columns) or 'none (--by COLUMN)'}.",
        ),
        (
            32,
            "External data",
            f"See Results on other images: {', '.join(others)}."
            if others
            else "None was evaluated on (chestx evaluate --data FOLDER).",
        ),
        (
            35,
            "Performance on all partitions",
            "Test: under Test results. Training and validation: per epoch, under Training of the baseline.",
        ),
        (
            36,
            "Diagnostic accuracy and its precision",
            f"On {n} test images of {patients} patients; see Operating points.",
        ),
        (
            37,
            "Failure analysis",
            "Every false negative under Test results, every changed decision under Changed decisions.",
        ),
        (
            38,
            "Limitations",
            "Those that follow from the numbers, under Limits; those of the data are for the author to add.",
        ),
    ]
