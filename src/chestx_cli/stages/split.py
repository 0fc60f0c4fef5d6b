"""`chestx split`: audit the images, then split them by patient."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from chestx_cli.audit import caveats
from chestx_cli.datasets import Listing, decode_all, find_images
from chestx_cli.errors import DataError, StudyError, UsageError
from chestx_cli.grouping import Grouping, group_by_name
from chestx_cli.locks import hold
from chestx_cli.options import Force, Opt, Ratios, Seed, StudyDir
from chestx_cli.record import changed_options
from chestx_cli.records import BadImageRow, GroupRuleRow, SplitRecord, SplitRow
from chestx_cli.splitting import SPLITS, joined_groups, stratified_group_split
from chestx_cli.stage import Run, stage
from chestx_cli.study import Study, parse_manifest

if TYPE_CHECKING:
    import numpy as np

    from chestx_cli.images import FileFacts
    from chestx_cli.study import Split

DataDir = Annotated[
    Path,
    Opt(
        help="Folder of two class folders, folder with train/ val/ test/, or CSV manifest.",
        argument=True,
        metavar="DATA",
    ),
]


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

    Every image is decoded. No patient is put into two parts: the patient comes from the manifest's group column, from
    --group-regex, or from file names by known rules; where no rule matches, each image counts as its own patient.
    A split that the data bring along is kept as it is, and what leaks in it is told.
    """
    import numpy as np

    if len(ratios) != 3 or abs(sum(ratios) - 100) > 1e-6:
        raise UsageError(
            f"--ratios {'/'.join(f'{r:g}' for r in ratios)} must be three shares that sum to 100", "as 70/15/15"
        )
    target = Study(study)
    listing = find_images(data, leave_out=study)
    positive_class = _positive_class(listing.classes, positive)
    grouping = _group(listing, group_regex)
    existing = _existing(run, target, listing, grouping, force=force)
    if existing is not None:
        return existing
    with run.reporter.progress("Decoding images", len(listing.paths)) as advance:
        facts, reasons = decode_all(listing, advance)
    # A name that is not UTF-8 can be neither printed nor stored as it is.
    bad = tuple(
        BadImageRow(path=listing.paths[row].encode("utf-8", "backslashreplace").decode(), reason=reason)
        for row, reason in reasons.items()
    )
    if bad and not skip_bad:
        raise DataError(_describe(bad), "repair or remove them, or leave them out with chestx split --skip-bad")
    good = sorted(facts)
    listing, grouping = listing.take(good), grouping.take(good)
    if len(listing.classes) != 2:
        raise DataError(f"{len(good)} readable images in {data}, of {len(listing.classes)} classes", "two are needed")
    hashes = [facts[row].sha256 for row in good]
    _require_one_label(listing, hashes)
    parts = listing.parts or _draw(listing, grouping, hashes, ratios, np.random.default_rng(seed))
    rows = _count(listing, grouping, parts)
    _require_both_classes(rows)
    content = _manifest(listing, grouping, parts, [facts[row] for row in good], positive_class).encode()
    made = parse_manifest(content, root=listing.root, classes=listing.classes, positive=positive_class)
    rules = tuple(GroupRuleRow(rule=rule, images=n) for rule, n in grouping.matched.items())
    record = SplitRecord(
        stamp=run.stamp(),
        notes=(*caveats(made, rules), *_notes(listing, bad, target, made)),
        source=str(data.resolve()),
        data=str(listing.root),
        layout=listing.layout,
        images=len(listing.paths),
        patients=len(set(grouping.keys)),
        classes=listing.classes,
        positive=positive_class,
        ignored_files=listing.ignored_files,
        rows=rows,
        group_rules=rules,
        bad_images=bad,
        split_csv_sha256=made.sha256,
    )
    hold(run, target.root, "the split")
    target.write_split(content, record)
    from chestx_cli.figures import draw_figures

    draw_figures(target, ("class-distribution", "split"))
    return record


def _existing(run: Run, target: Study, listing: Listing, grouping: Grouping, *, force: bool) -> SplitRecord | None:
    """Return the split that the same options and images made before; raise StudyError where they differ."""
    if force or not target.split_json.exists():
        return None
    record, before = target.read_split_record(), target.read_split()
    changes = changed_options({**record.stamp.options, "data": record.data}, {**run.options, "data": str(listing.root)})
    remedy = (
        "--force makes the split again, --study DIR begins another study; variants stay valid only for an equal split"
    )
    if changes:
        raise StudyError(f"{target.root}/ has a split made with other options ({'; '.join(changes)})", remedy)
    labels = [before.classes[label] for label in before.labels]
    then = dict(
        zip(before.paths.tolist(), zip(labels, before.groups.tolist(), before.parts.tolist(), strict=True), strict=True)
    )
    parts = listing.parts or [then.get(path, ("", "", ""))[2] for path in listing.paths]
    left_out = {row.path for row in record.bad_images}
    now = {
        path: told
        for path, *told in zip(listing.paths, listing.labels, grouping.keys, parts, strict=True)
        if path not in left_out
    }
    added, removed = len(now.keys() - then.keys()), len(then.keys() - now.keys())
    changed = sum(1 for path in now.keys() & then.keys() if tuple(now[path]) != then[path])
    if added or removed or changed:
        said = f"{added} images added, {removed} removed, {changed} with another label, patient or part"
        raise StudyError(f"{record.source} has changed since the split: {said}", remedy)
    run.reporter.note(f"already done: {target.split_json} was made with these options")
    return record


def _require_one_label(listing: Listing, hashes: list[str]) -> None:
    """Raise DataError where one and the same file stands under both labels."""
    seen: dict[str, int] = {}
    for row, sha256 in enumerate(hashes):
        first = seen.setdefault(sha256, row)
        if listing.labels[first] != listing.labels[row]:
            raise DataError(
                f"{listing.paths[first]} and {listing.paths[row]} are the same file under two labels",
                "remove the wrong one",
            )


def _draw(
    listing: Listing, grouping: Grouping, hashes: list[str], ratios: tuple[float, ...], rng: np.random.Generator
) -> tuple[str, ...]:
    """Return the part of each image; patients that share an identical file are kept together."""
    import numpy as np

    labels = np.array([listing.classes.index(label) for label in listing.labels], dtype=np.int64)
    keys, copies = (np.unique(np.array(values), return_inverse=True)[1] for values in (grouping.keys, hashes))
    drawn = stratified_group_split(labels, joined_groups(keys, copies), ratios, rng)
    return tuple(SPLITS[part] for part in drawn)


def _describe(bad: tuple[BadImageRow, ...]) -> str:
    lines = [f"{len(bad)} image{'s' if len(bad) > 1 else ''} cannot be read:"]
    lines += [f"  {row.path}: {row.reason}" for row in bad]
    return "\n".join(lines) + "\n"


def _group(listing: Listing, group_regex: str | None) -> Grouping:
    if listing.groups is None:
        return group_by_name(listing.paths, group_regex)
    if group_regex is not None:
        raise UsageError("the manifest has a group column, and --group-regex is given", "use one of them")
    return Grouping(keys=listing.groups, rules=("manifest's group column",) * len(listing.groups))


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
    patients: Counter[str] = Counter()
    for row in rows:
        patients[row.label] += row.patients
    for row in rows:
        if row.images == 0:
            raise DataError(
                f"the {row.split} split has no image of class {row.label}, which has {patients[row.label]} patients",
                "add patients of that class, choose other --ratios, or correct the patients with --group-regex",
            )


def _manifest(
    listing: Listing, grouping: Grouping, parts: tuple[str, ...], facts: list[FileFacts], positive: str
) -> str:
    import pandas as pd

    table = pd.DataFrame(
        {
            "image_id": [f"img-{row:06d}" for row in range(len(parts))],
            "path": listing.paths,
            "label": listing.labels,
            "is_positive": [int(label == positive) for label in listing.labels],
            "group": grouping.keys,
            "split": parts,
            "sha256": [fact.sha256 for fact in facts],
            "size_bytes": [fact.size_bytes for fact in facts],
            "width_px": [fact.width_px for fact in facts],
            "height_px": [fact.height_px for fact in facts],
        }
    )
    return table.to_csv(index=False, lineterminator="\n")


def _notes(listing: Listing, bad: tuple[BadImageRow, ...], target: Study, made: Split) -> tuple[str, ...]:
    notes = []
    if bad:
        notes.append(f"Left out as unreadable: {len(bad)}.")
    if listing.parts is not None:
        notes.append("The given split was kept: --ratios and --seed had no effect on it.")
    stale = [name for name in target.variant_names() if target.read_variant(name).split_sha256 != made.sha256]
    if stale:
        notes.append(f"Made for another split, and refused until made again: {', '.join(stale)}.")
    return tuple(notes)
