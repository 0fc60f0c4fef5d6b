"""`chestx split`: audit the images, then split them by patient."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from chestx_cli.datasets import Listing, decode_all, find_images
from chestx_cli.errors import DataError, StudyError, UsageError
from chestx_cli.files import write_atomic
from chestx_cli.grouping import Grouping, group_by_name
from chestx_cli.options import Force, Opt, Ratios, Seed, StudyDir
from chestx_cli.record import changed_options
from chestx_cli.records import BadImageRow, GroupRuleRow, SplitRecord, SplitRow
from chestx_cli.splitting import SPLITS, stratified_group_split
from chestx_cli.stage import Run, stage
from chestx_cli.study import Study, write_record

if TYPE_CHECKING:
    from chestx_cli.images import FileFacts

DataDir = Annotated[
    Path,
    Opt(
        help="Folder of two class folders, folder with train/ val/ test/, or CSV manifest.",
        argument=True,
        metavar="DATA",
    ),
]
SHOWN_PROBLEMS = 20


@stage
def split(
    run: Run,
    data: DataDir,
    *,
    study: StudyDir = Path("study"),
    positive: Annotated[
        str | None, Opt(help="Positive class; by default the one called pneumonia, else the second.")
    ] = None,
    ratios: Ratios = (70.0, 15.0, 15.0),
    group_regex: Annotated[
        str | None, Opt(help="Regular expression whose first group in the relative path is the patient.")
    ] = None,
    skip_bad: Annotated[bool, Opt(help="Leave out images that cannot be decoded, and count them.")] = False,
    seed: Seed = 42,
    force: Force = False,
) -> SplitRecord:
    """Audit the images, then split them by patient, stratified and seeded.

    Every image is decoded. No patient is in two parts: the patient comes from the manifest's group column, from
    --group-regex, or from file names by known rules; where no rule matches, each image counts as its own patient.
    """
    import numpy as np

    if len(ratios) != 3 or abs(sum(ratios) - 100) > 1e-6:
        raise UsageError(
            f"--ratios {'/'.join(f'{r:g}' for r in ratios)} must be three shares that sum to 100", "as 70/15/15"
        )
    target = Study(study)
    listing = find_images(data)
    existing = _existing(run, target, listing, force)
    if existing is not None:
        return existing
    with run.reporter.progress("Decoding images", len(listing.paths)) as advance:
        facts, reasons = decode_all(listing, advance)
    bad = tuple(BadImageRow(path=listing.paths[row], reason=reason) for row, reason in reasons.items())
    if bad and not skip_bad:
        raise DataError(_describe(bad), "repair or remove them, or leave them out with --skip-bad")
    good = sorted(facts)
    listing = listing.take(good)
    if len(listing.classes) != 2:
        raise (
            DataError(f"only the class {listing.classes} has readable images", "two classes are needed")
            if good
            else (DataError(f"no readable image in {data}", "nothing is left to split"))
        )
    grouping = _group(listing, group_regex)
    labels = np.array([listing.classes.index(label) for label in listing.labels], dtype=np.int64)
    if listing.parts is None:
        codes = np.unique(np.array(grouping.keys), return_inverse=True)[1].astype(np.int64)
        drawn = stratified_group_split(labels, codes, ratios, np.random.default_rng(seed))
        parts = tuple(SPLITS[part] for part in drawn)
    else:
        parts = listing.parts
    rows = _count(listing, grouping, parts)
    _require_both_classes(rows)
    content = _manifest(listing, grouping, parts, [facts[row] for row in good])
    record = SplitRecord(
        stamp=run.stamp(),
        notes=_notes(listing, grouping, parts, bad, target),
        data=str(listing.root),
        layout=listing.layout,
        images=len(listing.paths),
        patients=len(set(grouping.keys)),
        classes=listing.classes,
        positive=_positive_class(listing.classes, positive),
        ignored_files=listing.ignored_files,
        rows=rows,
        group_rules=tuple(GroupRuleRow(rule=rule, images=n) for rule, n in grouping.matched.items()),
        bad_images=bad,
        split_csv_sha256=hashlib.sha256(content.encode()).hexdigest(),
    )
    write_atomic(target.split_csv, content)
    write_record(target.split_json, record)
    from chestx_cli.figures import draw_figures

    draw_figures(target, ("class-distribution", "split"))
    return record


def _existing(run: Run, target: Study, listing: Listing, force: bool) -> SplitRecord | None:
    """Return the split that the same options and images made before; raise StudyError where they differ."""
    if force or not target.split_json.exists():
        return None
    record = target.read_split_record()
    before = target.read_split()
    changes = changed_options({**record.stamp.options, "data": record.data}, {**run.options, "data": str(listing.root)})
    remedy = "--force makes the split again (its variants must then be made again), --study DIR begins another study"
    if changes:
        raise StudyError(f"{target.root}/ has a split made with other options ({'; '.join(changes)})", remedy)
    known = {*before.paths.tolist(), *(row.path for row in record.bad_images)}
    added, removed = len(set(listing.paths) - known), len(known - set(listing.paths))
    if added or removed:
        raise StudyError(f"{record.data} has changed since the split: {added} images added, {removed} removed", remedy)
    run.reporter.note(f"already done: {target.split_json} was made with these options")
    return record


def _describe(bad: tuple[BadImageRow, ...]) -> str:
    lines = [f"{len(bad)} image{'s' if len(bad) > 1 else ''} cannot be read:"]
    lines += [f"  {row.path}: {row.reason}" for row in bad]
    return "\n".join(lines) + "\n"


def _group(listing: Listing, group_regex: str | None) -> Grouping:
    if listing.groups is None:
        return group_by_name(listing.paths, group_regex)
    if group_regex is not None:
        raise UsageError("the manifest has a group column, and --group-regex is given", "use one of them")
    return Grouping(keys=listing.groups, matched={"manifest's group column": len(listing.groups)})


def _positive_class(classes: tuple[str, ...], asked: str | None) -> str:
    if asked is not None:
        if asked not in classes:
            raise UsageError(f"--positive {asked!r} is no class", f"choose one of {', '.join(classes)}")
        return asked
    return next((name for name in classes if name.lower() == "pneumonia"), classes[1])


def _count(listing: Listing, grouping: Grouping, parts: tuple[str, ...]) -> tuple[SplitRow, ...]:
    import pandas as pd

    table = pd.DataFrame({"label": listing.labels, "group": grouping.keys, "part": parts})
    rows = []
    for part in SPLITS:
        for label in listing.classes:
            here = table[(table["part"] == part) & (table["label"] == label)]
            rows.append(
                SplitRow(
                    split=part,
                    label=label,
                    images=len(here),
                    patients=int(here["group"].nunique()),
                    share=len(here) / int((table["label"] == label).sum()),
                )
            )
    return tuple(rows)


def _require_both_classes(rows: tuple[SplitRow, ...]) -> None:
    for row in rows:
        if row.images == 0:
            raise DataError(
                f"the {row.split} split has no image of class {row.label}",
                "add images or patients of that class, or choose other --ratios",
            )


def _manifest(listing: Listing, grouping: Grouping, parts: tuple[str, ...], facts: list[FileFacts]) -> str:
    import pandas as pd

    table = pd.DataFrame(
        {
            "image_id": [f"img-{row:06d}" for row in range(len(parts))],
            "path": listing.paths,
            "label": listing.labels,
            "group": grouping.keys,
            "split": parts,
            "sha256": [fact.sha256 for fact in facts],
            "size_bytes": [fact.size_bytes for fact in facts],
            "width_px": [fact.width_px for fact in facts],
            "height_px": [fact.height_px for fact in facts],
        }
    )
    return table.to_csv(index=False, lineterminator="\n")


def _notes(
    listing: Listing, grouping: Grouping, parts: tuple[str, ...], bad: tuple[BadImageRow, ...], target: Study
) -> tuple[str, ...]:
    notes = []
    if grouping.unmatched:
        notes.append(
            f"No patient rule knew {grouping.unmatched} of {len(parts)} images: each counts as its own patient. "
            "If patients have several images, they may be in two parts, and results will flatter. Give "
            "--group-regex or a manifest."
        )
    parts_of: dict[str, set[str]] = {}
    for key, part in zip(grouping.keys, parts, strict=True):
        parts_of.setdefault(key, set()).add(part)
    leaking = sum(1 for found in parts_of.values() if len(found) > 1)
    if leaking:
        notes.append(
            f"LEAK: {leaking} patients are in more than one part of the given split. "
            "Test results on it will flatter; let chestx split the images by patient instead."
        )
    if bad:
        notes.append(f"{len(bad)} unreadable images were left out.")
    if listing.parts is not None:
        notes.append("The given split was kept: --ratios and --seed had no effect on it.")
    stale = list(target.root.glob("variants/[!.]*/variant.json"))
    if stale:
        notes.append(
            f"{len(stale)} variants in {target.root}/ belong to the earlier split; they are refused until made again."
        )
    return tuple(notes)
