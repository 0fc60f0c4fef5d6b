"""External images to evaluate on: found, decoded, predicted, and checked for overlap with the training images."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from chestx_cli.core.errors import DataError, again, quoted
from chestx_cli.core.printable import counted, printable
from chestx_cli.data.audit import Looked, join
from chestx_cli.data.duplicates import NEAR, same_files
from chestx_cli.data.film_audit import film_notes, left_out_notes, left_out_rows, taken_notes, taken_rows
from chestx_cli.data.images.films import air_of
from chestx_cli.data.images.formats.refusals import grouped
from chestx_cli.data.images.places import place_of
from chestx_cli.data.likeness.rule import Sign, unlike_note
from chestx_cli.data.likeness.stored import known_training_images
from chestx_cli.data.overlap import seen_images
from chestx_cli.data.sources.layouts import UnlabelledError
from chestx_cli.data.sources.listing import find_images
from chestx_cli.data.sources.manifest_files import Wish
from chestx_cli.data.sources.names import class_key
from chestx_cli.data.sources.patients import grouping_of, taken_of_dicom, with_dicom
from chestx_cli.data.sources.positives import positive_class
from chestx_cli.evaluation.predictions import Images
from chestx_cli.inference.prediction import open_model, predict_files
from chestx_cli.store.caveats import LEAKED, UNREAD, ungrouped
from chestx_cli.store.tables import csv_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from chestx_cli.core.command import Run
    from chestx_cli.data.images.decoding import FileFacts
    from chestx_cli.data.overlap import Overlap, SeenImages
    from chestx_cli.data.sources.listing import Listing
    from chestx_cli.data.sources.patients import Grouping
    from chestx_cli.inference.prediction import FilePredictions
    from chestx_cli.records.variant import VariantRecord
    from chestx_cli.store.directory import Study
    from chestx_cli.store.split import Split


@dataclass(frozen=True, kw_only=True)
class Source:
    """Source of external images, the name of their evaluation, and how their patients are identified."""

    data: Path
    name: str
    groups: Path | None
    group_regex: str | None
    labels_from: str | None
    allow_leakage: bool
    allow_lateral: bool


@dataclass(frozen=True, kw_only=True)
class ExternalImages:
    """Readable external images, a hash over all of them, and each variant's probabilities [N].

    paths: relative to the folder. listed: CSV table of all ids and paths. caveats: data warnings that begin with a
    label. notes: remarks without a label.
    """

    images: Images
    paths: tuple[str, ...]
    listed: str
    sha256: str
    probability: dict[str, npt.NDArray[np.float64]]
    caveats: tuple[str, ...]
    notes: tuple[str, ...]
    # Number that look unlike the training images; None if they were not compared.
    unlike: int | None


def predict_external(
    source: Source,
    run: Run,
    study: Study,
    split: Split,
    records: Sequence[VariantRecord],
    *,
    threads: int | None,
) -> ExternalImages:
    """Read the images of a folder or manifest and predict them with every variant.

    Copies among them count as images of one patient. Raises DataError if the classes differ from the study's, no image
    can be read, an image has two labels, or (unless allowed) an image or patient is in the study's training or
    validation split.
    """
    import numpy as np

    reporter = run.reporter
    listing = _listing(source, study, split)
    strict = bool(study.read_split_record().stamp.options.get("strict_groups"))
    grouping = grouping_of(listing.paths, listing.groups, source.groups, source.group_regex, strict=strict)
    files = [place_of(listing, row) for row in range(len(listing.paths))]
    predictions: dict[str, FilePredictions] = {}
    air: list[int] = []
    known, unlike = known_training_images(run, study, records[0]), list[tuple[Sign, ...]]()
    title = f"Evaluating {len(records)} variants on {source.name}"
    with seen_images(study, split) as seen, reporter.progress(title, len(files) * len(records)) as advance:
        seen.read(records[0].preprocessing, reporter)

        def look_at(pixels: npt.NDArray[np.uint8], facts: list[FileFacts]) -> None:
            thumbs = seen.add(pixels)
            air.extend(air_of(thumb) for thumb in thumbs)
            if known.images is not None:
                unlike.extend(known.images.signs(facts, thumbs))

        for record in records:
            look = None if predictions else look_at
            compute = open_model(study, record, threads)
            preprocessing = record.preprocessing.for_new_images(allow_lateral=source.allow_lateral)
            predictions[record.name] = predict_files(compute, preprocessing, files, advance, look)
            if look:
                looked, overlap = _compared(source, listing, grouping, predictions[record.name], seen)
    first = predictions[records[0].name]
    ids = [f"{source.name}-{row:06d}" for row in range(len(listing.paths))]
    return ExternalImages(
        images=Images(
            ids=np.array([ids[row] for row in first.rows], dtype=str),
            groups=np.array(looked.keys, dtype=str),
            is_positive=(looked.labels == looked.listing.classes.index(split.classes[split.positive])).astype(np.int64),
        ),
        paths=looked.listing.paths,
        listed=csv_text({"image_id": ids, "path": [printable(path) for path in listing.paths]}),
        sha256=hashlib.sha256("\n".join(looked.sha256).encode()).hexdigest(),
        probability={name: predicted.probabilities[:, split.positive] for name, predicted in predictions.items()},
        caveats=_caveats(source.name, looked, overlap),
        notes=(
            *_refusals(first, ids),
            *film_notes(first.facts, air, looked.listing.labels, [ids[row] for row in first.rows]),
            *taken_notes(taken_rows(first.facts, looked.listing.labels, None, listing.sifted)),
            *_left_out(listing),
            *_unlike(unlike, [ids[row] for row in first.rows], known.why_not),
            *_notes(looked, overlap),
        ),
        unlike=None if known.images is None else sum(map(bool, unlike)),
    )


def _unlike(unlike: Sequence[tuple[Sign, ...]], ids: Sequence[str], why_not: str) -> tuple[str, ...]:
    """Return a note on the images that look unlike the training images, or on why they were not compared."""
    if why_not:
        return (f"Not compared with the training images: {why_not}.",)
    found = [(name, signs) for name, signs in zip(ids, unlike, strict=True) if signs]
    return (unlike_note(len(found), found[0][0], ", ".join(found[0][1])),) if found else ()


def _listing(source: Source, study: Study, split: Split) -> Listing:
    """Return all images of a folder or manifest, of any part, with the study's class names."""
    data, positive = source.data, split.classes[split.positive]
    try:
        listing = find_images(data, leave_out=study.root, wish=external_wish(source.labels_from, split))
    except UnlabelledError as error:
        raise DataError(
            error.fact,
            f'put them into class folders to evaluate on them; "chestx predict {quoted(str(data))}" predicts them',
        ) from error
    names = {class_key(label): label for label in split.classes}
    if source.labels_from is not None:
        listed_positive = positive_class(listing, None).label
        other = next(label for label in split.classes if label != positive)
        return listing.renamed({label: positive if label == listed_positive else other for label in listing.classes})
    if {class_key(label) for label in listing.classes} != names.keys():
        raise DataError(
            f"{data} has the classes {', '.join(listing.classes)}, the study has {', '.join(split.classes)}",
            "name its class folders as the study's are named",
        )
    return listing.renamed({label: names[class_key(label)] for label in listing.classes})


def external_wish(labels_from: str | None, split: Split) -> Wish:
    """Return the reading options for external images: parts are ignored, and the label of interest is the study's."""
    finding = split.classes[split.positive] if labels_from else None
    return Wish(resplit=True, labels_from=labels_from, finding=finding)


def _compared(
    source: Source, listing: Listing, grouping: Grouping, predicted: FilePredictions, seen: SeenImages
) -> tuple[Looked, Overlap]:
    """Return the readable images with their patients, and their overlap with the study; raises DataError as above."""
    if not len(predicted.rows):
        first = next(iter(predicted.refused.values())).fact
        raise DataError(f"no image of {source.data} can be read (the first: {first})", "repair them, or name others")
    rows = predicted.rows.tolist()
    listing, grouping = listing.take(rows), grouping.take(rows)
    patients = [fact.patient for fact in predicted.facts]
    listing = replace(listing, taken=(*listing.taken, *taken_of_dicom(grouping, patients)))
    grouping = with_dicom(grouping, patients)
    hashes = [fact.sha256 for fact in predicted.facts]
    overlap = seen.overlap(listing.paths, hashes, grouping)
    looked = join(listing, grouping, (*same_files(hashes), *overlap.links), predicted.facts, ())
    if overlap.shared and not source.allow_leakage:
        lines = [f"  {line}" for line in (*overlap.patients, *overlap.images)]
        more = overlap.n_images + overlap.n_patients - len(lines)
        raise DataError(
            "\n".join(
                [
                    f"{_shared(overlap)} of {source.data} are in the study's training or validation split too:",
                    *lines,
                    *([f"  … and {more:,} more"] if more else []),
                ]
            ),
            "remove them: results on images seen in training are biased upwards. If different people have the same "
            f"number, give one a prefix in --groups. {again('--allow-leakage')} evaluates all, and marks every table "
            "LEAKED",
        )
    return looked, overlap


def _shared(overlap: Overlap) -> str:
    counts = ((overlap.n_images, "image"), (overlap.n_patients, "patient"))
    return " and ".join(counted(n, noun) for n, noun in counts if n)


def _caveats(name: str, looked: Looked, overlap: Overlap) -> tuple[str, ...]:
    """Return labelled warnings for everything that biases results upwards or could not be checked."""
    sentences = []
    if overlap.shared:
        sentences.append(
            f"{LEAKED}: {_shared(overlap)} of {name} are in the study's training or validation split too. Results "
            "are biased upwards."
        )
    if unknown := looked.grouping.unmatched:
        sentences.append(
            f"{ungrouped(unknown, len(looked.keys))}: The patient of {unknown:,} of {len(looked.keys):,} images of "
            f"{name} is unknown: each counts as its own patient. If a patient has several images, the intervals are "
            "too narrow, and some of them may have been trained on. Give --groups, --group-regex or a manifest "
            "with a group column."
        )
    if overlap.unread:
        sentences.append(
            f"{UNREAD}: The images of {name} could not be compared with those trained on ({overlap.unread}): only "
            "identical files were looked for; modified copies may be among them."
        )
    return tuple(sentences)


def _notes(looked: Looked, overlap: Overlap) -> tuple[str, ...]:
    notes = [f"{row.matter}: {row.taken_as} ({row.because}; {row.images:,} images)." for row in looked.listing.taken]
    joined = len(set(looked.grouping.keys)) - len(set(looked.keys))
    if joined:
        notes.append(f"Patients merged because they share an image: {joined:,}.")
    labels = looked.labels
    disputed = sum(1 for link in overlap.links if link.kind == NEAR and labels[link.first] != labels[link.second])
    if disputed:
        notes.append(f"Near-duplicates with different labels: {counted(disputed, 'pair')}.")
    if overlap.hidden_patients:
        notes.append(
            f"{overlap.hidden_patients:,} patients of the training and validation split are known only as hashes: "
            "whether they have images here was checked by the images, not by name."
        )
    return tuple(notes)


def _refusals(predicted: FilePredictions, ids: Sequence[str]) -> tuple[str, ...]:
    if not predicted.refused:
        return ()
    counts = Counter(refused.reason.value for refused in predicted.refused.values())
    counted = ", ".join(f"{n:,} {code}" for code, n in sorted(counts.items()))
    refusals = grouped(
        (ids[row], refusal.reason.value, refusal.detail) for row, refusal in sorted(predicted.refused.items())
    )
    named = "; ".join(f"{refusal.names[0]} ({refusal.code}: {refusal.detail})" for refusal in refusals)
    return (f"{len(predicted.refused):,} images could not be read and are left out ({counted}), such as {named}.",)


def _left_out(listing: Listing) -> tuple[str, ...]:
    return left_out_notes(left_out_rows(listing.sifted), listing.labels)
