"""Audit of all images before the split: unreadable files, patients and copies, shortcuts in file formats."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from chestx_cli.core.errors import DataError, again
from chestx_cli.core.printable import counted, printable
from chestx_cli.core.progress import ignored
from chestx_cli.data.duplicates import KINDS, SAME_FILE, Link, find_duplicates, same_files
from chestx_cli.data.film_audit import air_rows, few_levels
from chestx_cli.data.images.decoding import pixels_sha256
from chestx_cli.data.images.formats.refusals import Reason, grouped
from chestx_cli.data.images.places import place_of
from chestx_cli.data.scanning import scan_again, scan_images, scratch_file, value_bits_of
from chestx_cli.data.shortcuts import format_aurocs, format_rows
from chestx_cli.data.sources.layouts import DIVIDE_AGAIN
from chestx_cli.data.sources.patients import (
    NOT_FROM_DICOM,
    PAEDIATRIC,
    Grouping,
    group_by_name,
    taken_of_dicom,
    with_dicom,
)
from chestx_cli.data.sources.pseudonyms import pseudonyms
from chestx_cli.data.splitting import joined_groups
from chestx_cli.records.preprocessing import Preprocessing
from chestx_cli.records.split import (
    TEST,
    UNMATCHED,
    BadImageRow,
    DataAudit,
    DuplicateRow,
    RefusalRow,
    TakenRow,
    UnmatchedRow,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from chestx_cli.core.progress import Advance, Reporter
    from chestx_cli.data.images.decoding import FileFacts
    from chestx_cli.data.images.pixel_cache import PixelWriter
    from chestx_cli.data.sources.listing import Listing

LISTED = 20
# Of images that are refused for one reason.
NAMED = 3


@dataclass(frozen=True, kw_only=True)
class Looked:
    """The images to divide: label and group are small integers [N]; `facts` is empty if no image was opened.

    A group is a patient, or several patients who share an image; its key is that of its first image. Keys are hashes,
    also in `grouping`: the original identifiers are dropped here.
    """

    listing: Listing
    grouping: Grouping
    labels: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64]
    keys: tuple[str, ...]
    links: tuple[Link, ...]
    facts: Sequence[FileFacts] = ()
    bad: tuple[BadImageRow, ...] = ()
    # Decisions about patients.
    taken: tuple[TakenRow, ...] = ()
    # Value range of images with more than 8 bits; None if no image was opened.
    value_bits: int | None = None

    @property
    def sha256(self) -> tuple[str, ...]:
        """Return the hash of each file, computed or from the manifest."""
        return tuple(fact.sha256 for fact in self.facts) or self.listing.sha256 or ()


def image_id(row: int) -> str:
    """Return the id that names an image everywhere except in the split table."""
    return f"img-{row:06d}"


def look_at_images(
    listing: Listing,
    grouping: Grouping,
    preprocessing: Preprocessing,
    writer: PixelWriter,
    folder: Path,
    reporter: Reporter,
    *,
    skip_bad: bool,
) -> Looked:
    """Decode every image once, store its pixels with `writer`, and group the images by patient.

    Raises DataError for unreadable images, unless they are skipped, and for one image under two labels.
    """
    with scratch_file(folder) as scratch:
        with reporter.progress("Decoding images", len(listing.paths)) as advance:
            scan = scan_images(listing, preprocessing, writer, scratch, advance)
        bits = value_bits_of(scan.facts)
        if bits is not None:
            preprocessing = replace(preprocessing, value_bits=bits)
        if any(fact.value_bits not in (None, bits) for fact in scan.facts):
            with reporter.progress("Decoding images in one value range", len(listing.paths)) as advance:
                scan = scan_again(scan, listing, preprocessing, writer, scratch, advance)
        bad = tuple(
            BadImageRow(
                image_id=f"refused-{number:06d}",
                path=printable(listing.paths[row]),
                code=refused.reason.value,
                reason=refused.detail,
            )
            for number, (row, refused) in enumerate(scan.refused.items())
        )
        if bad and not skip_bad:
            raise DataError(_describe(bad), _remedy(bad))
        good, facts = scan.rows, scan.facts
        if bad:
            listing, grouping = listing.take(good), grouping.take(good)
        if len(listing.classes) != 2:
            fact = f"only {counted(len(good), 'image')} can be read"
            fact = f"{fact}, all of class {listing.classes[0]}" if listing.classes else fact
            raise DataError(fact, "repair those of the other class")
        patients = [fact.patient for fact in facts]
        taken = taken_of_dicom(grouping, patients)
        grouping = with_dicom(grouping, patients)
        with reporter.progress("Comparing images", None):
            links = find_duplicates(facts, scan, lambda row: pixels_sha256(place_of(listing, row), preprocessing))
    return replace(join(listing, grouping, links, facts, bad), value_bits=preprocessing.value_bits, taken=taken)


def trust_manifest(listing: Listing, grouping: Grouping) -> Looked:
    """Return the images of a manifest with file hashes, without opening them; raises DataError as above."""
    return join(listing, grouping, same_files(listing.sha256 or ()), (), ())


def join(
    listing: Listing,
    grouping: Grouping,
    links: tuple[Link, ...],
    facts: Sequence[FileFacts],
    bad: tuple[BadImageRow, ...],
) -> Looked:
    """Return the images, with patients who share one merged; raises DataError for an image under two labels."""
    import numpy as np
    import pandas as pd

    twice = [link for link in links if link.kind in KINDS[:2]]
    wrong = [link for link in twice if listing.labels[link.first] != listing.labels[link.second]]
    if wrong:
        lines = [
            f"  {_labelled(listing, link.first)} and {_labelled(listing, link.second)}: {link.kind}"
            for link in wrong[:LISTED]
        ]
        fact = f"images under two labels are the same file or have the same pixels ({counted(len(wrong), 'pair')}):"
        raise DataError(
            "\n".join([fact, *lines]),
            "remove the wrong one of each pair",
        )
    sha256 = tuple(fact.sha256 for fact in facts) or listing.sha256 or ()
    grouping = Grouping(keys=pseudonyms(grouping.keys, sha256), rules=grouping.rules)
    # Numbered in order of appearance, so that the result does not depend on hash values.
    patients = pd.factorize(np.array(grouping.keys, dtype=object))[0].astype(np.int64)
    pairs = np.array([(link.first, link.second) for link in links], dtype=np.int64).reshape(-1, 2)
    groups = joined_groups(patients, pairs)
    first = np.unique(groups, return_index=True)[1][groups]
    return Looked(
        listing=listing,
        grouping=grouping,
        labels=np.searchsorted(np.array(listing.classes, dtype=object), np.array(listing.labels, dtype=object)),
        groups=groups,
        keys=tuple(grouping.keys[row] for row in first.tolist()),
        links=links,
        facts=facts,
        bad=bad,
    )


def _labelled(listing: Listing, row: int) -> str:
    return f"{printable(listing.paths[row])} ({printable(listing.labels[row])})"


def refusals_of(bad: Sequence[BadImageRow]) -> tuple[RefusalRow, ...]:
    """Return refused images, grouped by reason."""
    return tuple(
        RefusalRow(code=alike.code, images=len(alike.names), reason=alike.detail, first=alike.names[0])
        for alike in grouped((row.path, row.code, row.reason) for row in bad)
    )


def _describe(bad: Sequence[BadImageRow]) -> str:
    lines = [f"{counted(len(bad), 'image')} cannot be read:"]
    for alike in grouped((row.path, row.code, row.reason) for row in bad):
        named, more = ", ".join(alike.names[:NAMED]), len(alike.names) - NAMED
        named = f"{named} and {more:,} more" if more > 0 else named
        named = f"{len(alike.names):,} images, {named}" if len(alike.names) > 1 else named
        lines.append(f"  {named}: {alike.code}: {alike.detail}")
    return "\n".join(lines)


def _remedy(bad: Sequence[BadImageRow]) -> str:
    leave_out = f"{again('--skip-bad')} leaves them out"
    lateral = sum(image.code == Reason.LATERAL for image in bad)
    if not lateral:
        return f"repair or remove them; or {leave_out}"
    if lateral == len(bad):
        return f"{again('--allow-lateral')} takes them; or {leave_out}"
    return f"repair or remove them; or {leave_out}, and {again('--skip-bad --allow-lateral')} all but lateral views"


def require_patients(looked: Looked, *, allow_ungrouped: bool) -> None:
    """Raise DataError if the patient of an image is unknown, unless that is allowed."""
    unknown = [
        path for path, rule in zip(looked.listing.paths, looked.grouping.rules, strict=True) if rule == UNMATCHED
    ]
    if unknown and not allow_ungrouped:
        without_id = sum(row.images for row in looked.taken if row.taken_as == NOT_FROM_DICOM)
        fact = (
            f"the patient of {len(unknown):,} of {len(looked.keys):,} images is unknown, such as "
            f"{printable(unknown[0])}"
        )
        raise DataError(
            f"{fact} (DICOM files with a placeholder PatientID: {without_id:,})" if without_id else fact,
            "give --groups FILE.csv with the columns path,group, or --group-regex EXPRESSION; or treat each as its "
            f"own patient with {again('--allow-ungrouped')}: every table is then marked UNGROUPED, with their number",
        )


def require_no_leak(looked: Looked, *, allow_leakage: bool) -> None:
    """Raise DataError if parts of a supplied split share a patient or an image, unless that is allowed."""
    if looked.listing.parts is None or allow_leakage:
        return
    n, where, examples = leaks(looked.listing.paths, looked.listing.parts, looked.grouping.keys, looked.links)
    if n:
        lines = [
            f"the given split has {counted(n, 'leak')}, {where}:",
            *(f"  {line}" for line in examples),
        ]
        if n > len(examples):
            lines.append(f"  … and {n - len(examples):,} more")
        raise DataError(
            "\n".join(lines),
            f"{DIVIDE_AGAIN}; or keep this split with {again('--allow-leakage')}: every table is then marked LEAKED",
        )


def leaks(
    paths: Sequence[str], parts: Sequence[str], keys: Sequence[str], links: Sequence[Link]
) -> tuple[int, str, tuple[str, ...]]:
    """Return the leaks of a supplied split: their number, the affected parts as text, and the first ones as text.

    A leak is a patient, or a pair of equal images, in two parts. A patient is identified by an image in each part.
    """
    crossing = [link for link in links if parts[link.first] != parts[link.second]]
    pairs = [
        f"{printable(paths[link.first])} and {printable(paths[link.second])}: {link.kind}, in {parts[link.first]} and "
        f"{parts[link.second]}"
        for link in crossing
    ]
    home: dict[str, str] = {}
    divided = {key for key, part in zip(keys, parts, strict=True) if home.setdefault(key, part) != part}
    where: dict[str, dict[str, list[str]]] = {key: {} for key in home if key in divided}
    for path, key, part in zip(paths, keys, parts, strict=True):
        if key in divided:
            where[key].setdefault(part, []).append(path)
    patients = [
        "a patient with "
        + ", ".join(
            f"{len(own)} in {part} ({printable(own[0])}{', …' if len(own) > 1 else ''})"
            for part, own in by_part.items()
        )
        for by_part in where.values()
    ]
    sets = [set(by_part) for by_part in where.values()]
    sets += [{parts[link.first], parts[link.second]} for link in crossing]
    return len(sets), _between(sets), (*patients[:LISTED], *pairs[:LISTED])


def _between(sets: Sequence[set[str]]) -> str:
    """Return a phrase: the parts that share patients or images, and whether the test part is affected."""
    tested = sum(TEST in shared for shared in sets)
    if not tested:
        return "all between train and val; test shares no patient and no image with them"
    if tested < len(sets):
        return f"{tested:,} with test and {len(sets) - tested:,} between train and val"
    return "all with test"


def audit_of(
    looked: Looked,
    parts: Sequence[str],
    positive: str,
    *,
    stamps: tuple[str, ...],
    seed: int,
    advance: Advance = ignored,
) -> DataAudit:
    """Return the audit as it is printed and stored; `parts` [N] is the split made."""
    unknown = looked.grouping.unmatched
    loose, strict = _paediatric_patients(looked)
    is_positive = (looked.labels == looked.listing.classes.index(positive)).astype("int64")
    plain = with_bytes = None
    if looked.facts:
        plain, with_bytes = format_aurocs(is_positive, looked.groups, looked.facts, seed, advance)
    return DataAudit(
        stamps=stamps,
        matched_share=1 - unknown / len(looked.keys),
        patients_before_merging=len(set(looked.grouping.keys)),
        paediatric_patients=loose,
        paediatric_numbers=strict,
        format_auroc=plain,
        format_bytes_auroc=with_bytes,
        duplicates=tuple(_duplicate_row(kind, looked, parts) for kind in (KINDS if looked.facts else (SAME_FILE,))),
        formats=format_rows(looked.labels, looked.listing.classes, looked.facts) if looked.facts else (),
        unmatched=tuple(
            UnmatchedRow(image_id=image_id(row))
            for row, rule in enumerate(looked.grouping.rules)
            if rule == UNMATCHED and unknown < len(looked.keys)
        ),
        air=air_rows([fact.air for fact in looked.facts], looked.listing.labels) if looked.facts else (),
        few_levels=few_levels(looked.facts, [image_id(row) for row in range(len(looked.facts))]),
    )


def _duplicate_row(kind: str, looked: Looked, parts: Sequence[str]) -> DuplicateRow:
    mine = [link for link in looked.links if link.kind == kind]
    across = sum(1 for link in mine if parts[link.first] != parts[link.second])
    labels = looked.labels
    return DuplicateRow(
        kind=kind,
        pairs=len(mine),
        within=len(mine) - across,
        across=across,
        across_labels=sum(1 for link in mine if labels[link.first] != labels[link.second]),
    )


def _paediatric_patients(looked: Looked) -> tuple[int | None, int | None]:
    """Return the number of patients in the paediatric set under both interpretations of its file names."""
    mine = [
        path
        for path, rule in zip(looked.listing.paths, looked.grouping.rules, strict=True)
        if rule.startswith(PAEDIATRIC)
    ]
    if not mine:
        return None, None
    loose, strict = (len(set(group_by_name(mine, strict=strict).keys)) for strict in (False, True))
    return loose, strict
