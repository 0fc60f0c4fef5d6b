"""`chestx split`: audit the images, then split them by patient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from chestx_cli.core.command import Run, stage
from chestx_cli.core.errors import IntegrityError, OtherOptionsError, StudyError, UsageError, again
from chestx_cli.core.files import sha256_of, write_atomic
from chestx_cli.core.options import Opt
from chestx_cli.core.printable import counted
from chestx_cli.core.record import changed_options
from chestx_cli.core.shared_options import AllowLateral, Force, GroupRegex, Groups, Ratios, Seed, StudyDir, Window
from chestx_cli.data.audit import (
    Looked,
    audit_of,
    image_id,
    look_at_images,
    refusals_of,
    require_no_leak,
    require_patients,
    trust_manifest,
)
from chestx_cli.data.differing_images import differing_images
from chestx_cli.data.dividing import Division, divide, divide_into_folds, val_notes
from chestx_cli.data.duplicates import NEAR
from chestx_cli.data.film_audit import film_notes, left_out_notes, left_out_rows, taken_rows
from chestx_cli.data.images.pixel_cache import cache_path, write_pixels
from chestx_cli.data.shortcuts import FITS, predicts_class
from chestx_cli.data.sources.label_tables import LabelsFrom
from chestx_cli.data.sources.layouts import DIVIDE_AGAIN
from chestx_cli.data.sources.listing import Listing, find_images
from chestx_cli.data.sources.manifest_files import Wish
from chestx_cli.data.sources.patients import Grouping, grouping_of
from chestx_cli.data.sources.positives import Positive, positive_class
from chestx_cli.data.split_tables import count_parts, duplicates_csv, manifest_csv, split_of
from chestx_cli.records.preprocessing import RESIZED, SQUASH, Preprocessing
from chestx_cli.records.split import SPLITS, VAL, DataAudit, FoldRow, FoldsRecord, GroupRuleRow, SplitRecord
from chestx_cli.reporting import answers
from chestx_cli.store.caveats import caveats, stamps_of
from chestx_cli.store.directory import Study, open_study
from chestx_cli.store.documents import read_record, write_record
from chestx_cli.store.locks import hold
from chestx_cli.store.tables import read_csv_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chestx_cli.store.split import Split

DataDir = Annotated[
    Path,
    Opt(
        help="Class folders, train/ val/ test/, or a manifest.",
        argument=True,
        metavar="DATA",
    ),
]


@stage(examples=("chestx split data/ --ratios 70/15/15 --seed 42",), after="demo")
def split(
    run: Run,
    data: DataDir,
    *,
    study: StudyDir = Path("study"),
    positive: Annotated[str | None, Opt(help="Positive class; found by its name by default.")] = None,
    labels_from: LabelsFrom = None,
    resplit: Annotated[bool, Opt(help="Ignore the data's own split; divide by patient.")] = False,
    ratios: Ratios = (70.0, 15.0, 15.0),
    folds: Annotated[
        int | None, Opt(help="Folds to make, a study each, instead of a split.", minimum=2, maximum=100)
    ] = None,
    groups: Groups = None,
    group_regex: GroupRegex = None,
    strict_groups: Annotated[bool, Opt(help="Paediatric set: one number is one patient.")] = False,
    allow_ungrouped: Annotated[bool, Opt(help="Unknown patients: one per image (UNGROUPED).", identity=False)] = False,
    allow_leakage: Annotated[bool, Opt(help="Keep a given split that leaks (LEAKED).", identity=False)] = False,
    unread: Annotated[bool, Opt(help="Open no image; the manifest has sha256 (UNREAD).")] = False,
    skip_bad: Annotated[bool, Opt(help="Leave out images that cannot be decoded.")] = False,
    window: Window = None,
    allow_lateral: AllowLateral = False,
    image_size: Annotated[int, Opt(help="Side in px at which images are kept.", minimum=32, identity=False)] = 224,
    resize: Annotated[str, Opt(help="How they are kept as squares.", choices=RESIZED, identity=False)] = SQUASH,
    seed: Seed = 42,
    force: Force = False,
) -> SplitRecord | FoldsRecord:
    """Audit the images, then split them by patient.

    Every image is decoded once. No patient is in two parts: the patient comes from --groups, the manifest's group
    column or --group-regex, from DICOM, or from file names by known rules. Patients who share an image, as the same
    file, the same pixels or a near-duplicate, count as one. A split supplied with the data is kept, with val drawn from
    train if missing; --resplit divides all images again.
    """
    if len(ratios) != 3 or abs(sum(ratios) - 100) > 1e-6:
        raise UsageError(
            f"--ratios {'/'.join(f'{r:g}' for r in ratios)} must be three shares that sum to 100",
            f"{again('--ratios 70/15/15')} has such",
        )
    if folds and ratios[1] + 100 / folds >= 100:
        raise UsageError(
            f"--folds {folds} leaves nothing to train on with {ratios[1]:g} % for validation",
            f"{again('--folds 5 --ratios 70/15/15')} leaves 65 %",
        )
    target = open_study(study)
    options = SplitOptions(
        data=data,
        positive=positive,
        labels_from=labels_from,
        resplit=resplit,
        ratios=ratios,
        folds=folds,
        groups=groups,
        group_regex=group_regex,
        strict_groups=strict_groups,
        allow_ungrouped=allow_ungrouped,
        allow_leakage=allow_leakage,
        unread=unread,
        skip_bad=skip_bad,
        preprocessing=Preprocessing(image_size_px=image_size, resize=resize, window=window, lateral=allow_lateral),
        seed=seed,
        force=force,
    )
    record = _make(run, target, options)
    if isinstance(record, SplitRecord):
        from chestx_cli.reporting.figures.drawing import draw_figures

        draw_figures(target, ("class-distribution", "split", "near-duplicates"), run.reporter)
    return record.replace(answer=answers.of_split(record, target.root))


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """The options of a split."""

    data: Path
    positive: str | None
    labels_from: str | None
    resplit: bool
    ratios: tuple[float, ...]
    folds: int | None
    groups: Path | None
    group_regex: str | None
    strict_groups: bool
    allow_ungrouped: bool
    allow_leakage: bool
    unread: bool
    skip_bad: bool
    # How the pixels are kept.
    preprocessing: Preprocessing
    seed: int
    force: bool


def _make(run: Run, target: Study, options: SplitOptions) -> SplitRecord | FoldsRecord:
    """Return the record of the split that the options describe.

    A function of its own, so that its memory is freed before figures are drawn.
    """
    wish = Wish(resplit=options.resplit, labels_from=options.labels_from, finding=options.positive)
    listing = find_images(options.data, leave_out=target.root, wish=wish)
    if options.folds and listing.parts:
        raise UsageError("--folds is given, and the data are split already", f"{DIVIDE_AGAIN} into folds")
    positive = positive_class(listing, options.positive)
    grouping = _group(run, listing, options)
    existing = _existing(run, target, listing, grouping, options)
    if existing is not None:
        return existing
    if options.unread:
        looked = _checked(trust_manifest(_unread_listing(listing), grouping), options)
        return _divide(run, target, looked, positive, options)
    preprocessing = options.preprocessing
    with write_pixels(target.cache, preprocessing.image_size_px) as writer:
        looked = look_at_images(
            listing, grouping, preprocessing, writer, target.cache, run.reporter, skip_bad=options.skip_bad
        )
        record = _divide(run, target, _checked(looked, options), positive, options)
        as_stored = replace(preprocessing, value_bits=looked.value_bits or preprocessing.value_bits)
        writer.keep(cache_path(target, list(looked.sha256), as_stored))
    return record


def _unread_listing(listing: Listing) -> Listing:
    if listing.groups is None or listing.sha256 is None:
        raise UsageError(
            "--unread needs facts that only the images contain",
            "give a manifest with the columns path,label,group,sha256",
        )
    return listing


def _checked(looked: Looked, options: SplitOptions) -> Looked:
    require_patients(looked, allow_ungrouped=options.allow_ungrouped)
    require_no_leak(looked, allow_leakage=options.allow_leakage)
    return looked


def _divide(
    run: Run, target: Study, looked: Looked, positive: Positive, options: SplitOptions
) -> SplitRecord | FoldsRecord:
    if options.folds is None:
        division = divide(looked, options.ratios, options.seed)
        record, content = _describe(run, target, looked, division, positive, options)
        hold(run, target.root, "the split")
        _store(target, looked, record, content, division.parts)
        return record
    cells = []
    divided = divide_into_folds(looked, options.folds, options.ratios, options.seed)
    for number, parts in enumerate(divided, start=1):
        record, content = _describe(run, target.fold(number), looked, Division(parts=parts), positive, options)
        cells.append((record.replace(fold=number), content, parts))
    hold(run, target.root, "the split")
    for number, (record, content, parts) in enumerate(cells, start=1):
        _store(target.fold(number), looked, record, content, parts)
    folds_record = _folds_record(run, target, looked, [(record, parts) for record, _, parts in cells])
    write_record(target.folds_json, folds_record)
    return folds_record


def _describe(
    run: Run, target: Study, looked: Looked, division: Division, positive: Positive, options: SplitOptions
) -> tuple[SplitRecord, bytes]:
    """Return the record of a split and the content of its manifest."""
    listing, parts = looked.listing, division.parts
    rows = count_parts(looked, parts)
    content = manifest_csv(looked, parts, positive.label)
    manifest = split_of(looked, parts, positive.label, content)
    rules = tuple(GroupRuleRow(rule=rule, images=n) for rule, n in looked.grouping.matched.items())
    sentences = caveats(manifest, rules)
    run.stamped(stamps_of(sentences))
    with run.reporter.progress("Predicting the class from sizes and formats of files", FITS) as advance:
        audit = audit_of(looked, parts, positive.label, stamps=stamps_of(sentences), seed=options.seed, advance=advance)
    of_files = taken_rows(looked.facts, listing.labels, looked.value_bits, listing.sifted) if looked.facts else ()
    record = SplitRecord(
        stamp=run.stamp(),
        notes=(
            *sentences,
            *val_notes(rows, kept=listing.parts is not None and VAL in listing.parts),
            *_audit_notes(looked, audit),
            *_image_notes(looked),
            *_notes(looked, target, manifest),
        ),
        source=str(options.data.resolve()),
        data=str(listing.root),
        layout=listing.layout,
        images=len(listing.paths),
        patients=len(set(looked.keys)),
        classes=listing.classes,
        positive=positive.label,
        ignored_files=sum(row.files for row in left_out_rows(listing.sifted)),
        rows=rows,
        group_rules=rules,
        taken=(*listing.taken, *positive.taken, *looked.taken, *division.taken, *of_files),
        left_out=left_out_rows(listing.sifted),
        refusals=refusals_of(looked.bad),
        bad_images=looked.bad,
        value_bits=looked.value_bits,
        window=options.preprocessing.window,
        lateral=options.preprocessing.lateral,
        audit=audit,
        split_csv_sha256=manifest.sha256,
    )
    return record, content


def _store(target: Study, looked: Looked, record: SplitRecord, content: bytes, parts: Sequence[str]) -> None:
    write_atomic(target.duplicates_csv, duplicates_csv(looked, parts))
    target.write_split(content, record)


def _folds_record(
    run: Run, target: Study, looked: Looked, cells: Sequence[tuple[SplitRecord, Sequence[str]]]
) -> FoldsRecord:
    import numpy as np

    first = cells[0][0]
    assert first.audit is not None  # noqa: S101 - every split made here has one
    positive = looked.labels == first.classes.index(first.positive)
    rows = []
    for record, parts in cells:
        train, val, test = (np.array(parts, dtype=object) == part for part in SPLITS)
        rows.append(
            FoldRow(
                study=target.fold(record.fold or 0).root.name,
                train_images=int(train.sum()),
                val_images=int(val.sum()),
                test_images=int(test.sum()),
                test_patients=len(np.unique(looked.groups[test])),
                train_positive=float(positive[train].mean()),
                val_positive=float(positive[val].mean()),
                test_positive=float(positive[test].mean()),
                split_csv_sha256=record.split_csv_sha256,
            )
        )
    return FoldsRecord(
        stamp=run.stamp(),
        notes=(*first.notes, f"Each fold is a study: --study {target.fold(1).root}, and so on."),
        source=first.source,
        data=first.data,
        layout=first.layout,
        images=first.images,
        patients=first.patients,
        classes=first.classes,
        positive=first.positive,
        ignored_files=first.ignored_files,
        rows=tuple(rows),
        group_rules=first.group_rules,
        taken=first.taken,
        left_out=first.left_out,
        refusals=first.refusals,
        bad_images=first.bad_images,
        value_bits=first.value_bits,
        window=first.window,
        lateral=first.lateral,
        audit=first.audit,
    )


def _existing(
    run: Run, target: Study, listing: Listing, grouping: Grouping, options: SplitOptions
) -> SplitRecord | FoldsRecord | None:
    """Return the existing record if it was made with the same options and images; raises StudyError if they differ."""
    folds = options.folds
    if (target.split_json if folds else target.folds_json).exists():
        raise StudyError(
            f"{target.root}/ was divided into {'one split' if folds else 'folds'}",
            "begin another study with --study DIR",
        )
    if folds and (extra_fold := target.fold(folds + 1)).split_json.exists():
        raise StudyError(f"{extra_fold.root}/ is left of a division into more folds", "remove it, or use --study DIR")
    path = target.folds_json if folds else target.split_json
    if options.force or not path.exists():
        return None
    record: SplitRecord | FoldsRecord = read_record(FoldsRecord, path) if folds else target.read_split_record()
    cell = target.fold(1) if folds else target
    cell.read_split()
    changes = changed_options(record.stamp.options, run.options)
    if record.stamp.inputs.get("groups") != run.inputs.get("groups"):
        changes.append("groups: another table")
    if record.data != str(listing.root):
        changes.append("DATA: another folder")
    remedy = (
        f"{again('--force')} makes the split again, and variants stay valid only for an equal one; --study DIR begins "
        "another study"
    )
    if changes:
        raise OtherOptionsError(f"{target.root}/ has a split made with other options ({'; '.join(changes)})", remedy)
    try:
        manifest = read_csv_text(cell.split_csv.read_bytes(), ["path", "label", "patient", "patient_from", "split"])
    except ValueError as error:
        raise IntegrityError(f"{cell.split_csv} is damaged: {error}", remedy) from error
    differing = differing_images(manifest, listing, grouping, left_out={row.path for row in record.bad_images})
    if differing:
        raise OtherOptionsError(f"{options.data} has changed since the split: {differing.counts}", remedy)
    run.reporter.note(f"already done: {path} was made with these options")
    return record


def _group(run: Run, listing: Listing, options: SplitOptions) -> Grouping:
    table = options.groups
    grouping = grouping_of(listing.paths, listing.groups, table, options.group_regex, strict=options.strict_groups)
    if table is not None:
        run.uses("groups", sha256_of(table))
    return grouping


def _audit_notes(looked: Looked, audit: DataAudit) -> tuple[str, ...]:
    notes = []
    patients = [len(set(looked.groups[looked.labels == label].tolist())) for label in (0, 1)]
    if audit.format_auroc is not None and predicts_class(audit.format_auroc, *patients):
        notes.append(
            f"File properties alone predict the class (AUROC {audit.format_auroc:.3f} from image size, aspect, mode "
            "and file type): a shortcut that a network may learn instead of the chest."
        )
    elif audit.format_bytes_auroc is not None and predicts_class(audit.format_bytes_auroc, *patients):
        notes.append(
            f"File size and format alone predict the class (AUROC {audit.format_bytes_auroc:.3f}): a possible "
            "shortcut. Smooth images compress better, so this may be the disease or how each class was taken and "
            "stored."
        )
    merged = len(set(looked.grouping.keys)) - len(set(looked.keys))
    if merged:
        notes.append(f"Patients merged because they share an image: {merged:,}.")
    labels = looked.labels
    disputed = sum(1 for link in looked.links if link.kind == NEAR and labels[link.first] != labels[link.second])
    if disputed:
        notes.append(
            f"Near-duplicates with different labels: {counted(disputed, 'pair')}, listed in duplicates.csv. Check them."
        )
    return tuple(notes)


def _image_notes(looked: Looked) -> tuple[str, ...]:
    labels, facts = looked.listing.labels, looked.facts
    ids = [image_id(row) for row in range(len(facts))]
    about_images = film_notes(facts, [fact.air for fact in facts], labels, ids) if facts else ()
    return (*about_images, *left_out_notes(left_out_rows(looked.listing.sifted), labels))


def _notes(looked: Looked, target: Study, manifest: Split) -> tuple[str, ...]:
    notes = []
    if looked.bad:
        notes.append(f"Left out as unreadable: {len(looked.bad)}.")
    if looked.listing.parts is not None and VAL in looked.listing.parts:
        notes.append("The given split was kept: --ratios and --seed had no effect on it.")
    stale = [record.name for record in target.read_variants() if record.split_sha256 != manifest.sha256]
    if stale:
        notes.append(f"Made for another split, so refused until made again: {', '.join(stale)}.")
    return tuple(notes)
