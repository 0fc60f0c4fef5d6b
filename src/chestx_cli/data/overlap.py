"""Overlap of other images with those used for training or validation: equal files, near-duplicates, patients."""

from __future__ import annotations

import io
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.core.errors import ChestxError, DataError, UsageError
from chestx_cli.core.files import folder_if_used
from chestx_cli.core.printable import printable
from chestx_cli.data.duplicates import SAME_FILE, Link, near_duplicates
from chestx_cli.data.images.formats.dicom import read_patient
from chestx_cli.data.images.formats.refusals import UnreadableImageError
from chestx_cli.data.images.pixel_cache import in_order
from chestx_cli.data.images.places import Place, place_of, read_image
from chestx_cli.data.scanning import THUMB_PX, scratch_file, thumbnails
from chestx_cli.data.sources.listing import find_images
from chestx_cli.data.sources.manifest_files import wish_of
from chestx_cli.data.sources.patients import FROM_COLUMN, FROM_DICOM, dicom_key, group_by_name
from chestx_cli.data.streams import open_images
from chestx_cli.records.preprocessing import SQUASH
from chestx_cli.records.split import UNMATCHED
from chestx_cli.store.tables import read_csv_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import IO

    from chestx_cli.core.progress import Reporter
    from chestx_cli.data.images.pixel_cache import Pixels
    from chestx_cli.data.sources.patients import Grouping
    from chestx_cli.records.preprocessing import Preprocessing
    from chestx_cli.records.split import SplitRecord
    from chestx_cli.store.directory import Study
    from chestx_cli.store.split import Split

LISTED = 20


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """The overlap of other images with the training and validation images of a study, and among themselves.

    `images` and `patients` describe the first shared ones; the numbers count all. `links` join rows of the other
    images. `unread`: why the study's pixels could not be compared. `hidden_patients`: number of the study's patients
    known only by hashes.
    """

    n_images: int
    n_patients: int
    images: tuple[str, ...]
    patients: tuple[str, ...]
    links: tuple[Link, ...]
    unread: str
    hidden_patients: int

    @property
    def shared(self) -> bool:
        """Return whether there is any overlap."""
        return bool(self.n_images or self.n_patients)


class SeenImages:
    """The training and validation images of a study, followed by the images passed to `add`.

    All are compared at network size: thumbnails are made from pixels at network size.
    """

    def __init__(self, study: Study, split: Split, scratch: IO[bytes]) -> None:
        import numpy as np

        self._study, self._split, self._scratch = study, split, scratch
        self._rows = np.flatnonzero(split.parts != "test")
        self._thumbs = 0
        self._unread, self._resize = "", SQUASH

    def read(self, preprocessing: Preprocessing, reporter: Reporter) -> None:
        """Read the study's own images from its cache or files; without either, only hashes are compared.

        Images added later must have the same preprocessing.
        """
        self._resize = preprocessing.resize
        try:
            pixels = open_images(self._study, self._split, preprocessing, reporter)
        except ChestxError as error:
            self._unread = error.fact
            return

        def thumbs_of(rows: range) -> Pixels:
            return thumbnails(pixels[self._rows[rows.start : rows.stop]], self._resize)

        for thumbs in in_order(thumbs_of, len(self._rows)):
            self._write(thumbs)

    def add(self, pixels: Pixels) -> Pixels:
        """Add other images [n, H, W], in order; return their thumbnails [n, 64, 64]."""
        thumbs = thumbnails(pixels, self._resize)
        self._write(thumbs)
        return thumbs

    def _write(self, thumbs: Pixels) -> None:
        self._scratch.write(thumbs.data)
        self._thumbs += len(thumbs)

    def overlap(self, paths: Sequence[str], hashes: Sequence[str], grouping: Grouping) -> Overlap:
        """Return the overlap of the added images with the study; all arguments have one entry per added image."""
        split, n_seen = self._split, 0 if self._unread else len(self._rows)
        near = self._near(n_seen)
        where = {str(split.image_sha256[row]): row for row in self._rows.tolist()}
        shared = {row: (where[sha256], SAME_FILE) for row, sha256 in enumerate(hashes) if sha256 in where}
        for link in near:
            if link.first < n_seen <= link.second:
                shared.setdefault(link.second - n_seen, (int(self._rows[link.first]), link.kind))
        within = tuple(
            Link(first=link.first - n_seen, second=link.second - n_seen, kind=link.kind)
            for link in near
            if link.first >= n_seen
        )
        keys = study_keys(self._study, split)
        mine = {key: str(split.parts[row]) for row in self._rows.tolist() if (key := keys[row]) is not None}
        patients = _shared_patients(paths, grouping, mine)
        hidden = {str(split.groups[row]) for row in self._rows.tolist() if keys[row] is None}
        return Overlap(
            n_images=len(shared),
            n_patients=len(patients),
            images=tuple(
                f"{printable(paths[row])} and {split.ids[seen]} of the {split.parts[seen]} split: {kind}"
                for row, (seen, kind) in sorted(shared.items())[:LISTED]
            ),
            patients=patients[:LISTED],
            links=within,
            unread=self._unread,
            hidden_patients=len(hidden),
        )

    def _near(self, n_seen: int) -> list[Link]:
        """Return the near-duplicates among all thumbnails, except pairs within the study."""
        import numpy as np

        self._scratch.flush()
        thumbs = np.memmap(self._scratch, dtype=np.uint8, mode="r", shape=(self._thumbs, THUMB_PX, THUMB_PX))
        return [link for link in near_duplicates(thumbs, np.arange(self._thumbs)) if link.second >= n_seen]


@contextmanager
def seen_images(study: Study, split: Split) -> Iterator[SeenImages]:
    """Yield a comparison of other images with those of a study; its thumbnails are temporary."""
    with folder_if_used(study.cache), scratch_file(study.cache) as scratch:
        yield SeenImages(study, split, scratch)


def study_keys(study: Study, split: Split) -> list[str | None]:
    """Return the patient key of each image of a study [N], re-derived from its names or files; None where it cannot be.

    The study stores salted hashes only, so the patients of a --groups table are lost when that table is gone.
    """
    record = study.read_split_record()
    rules = read_csv_text(study.split_csv.read_bytes(), ["patient_from"])["patient_from"].tolist()
    regex, strict = (record.stamp.options.get(name) for name in ("group_regex", "strict_groups"))
    by_name = group_by_name(split.paths.tolist(), regex, strict=bool(strict))
    listed = _listed_groups(study, record) if FROM_COLUMN in rules else {}

    def key(row: int, path: str, rule: str) -> str | None:
        if rule == FROM_COLUMN:
            return listed.get(path)
        if rule == FROM_DICOM:
            patient = _patient_of(place_of(split, row))
            return None if patient is None else dicom_key(patient)
        return by_name.keys[row] if rule == by_name.rules[row] != UNMATCHED else None

    return [key(row, path, rule) for row, (path, rule) in enumerate(zip(split.paths.tolist(), rules, strict=True))]


def _patient_of(place: Place) -> str | None:
    if isinstance(place, Path):
        return read_patient(place)
    try:
        return read_patient(io.BytesIO(read_image(place)))
    except UnreadableImageError:
        return None


def _listed_groups(study: Study, record: SplitRecord) -> dict[str, str]:
    """Return the patient of each path listed in a manifest or shards; empty if these are gone or have changed."""
    try:
        read = find_images(Path(record.source), leave_out=study.root, wish=wish_of(record))
    except (DataError, UsageError):
        return {}
    return dict(zip(read.paths, read.groups or (), strict=bool(read.groups)))


def _shared_patients(paths: Sequence[str], grouping: Grouping, seen: Mapping[str, str]) -> tuple[str, ...]:
    """Return the patients who also have images in a part of the study, each described by one of its images here."""
    paths_of: dict[str, list[str]] = {}
    for path, key, rule in zip(paths, grouping.keys, grouping.rules, strict=True):
        if rule != UNMATCHED and key in seen:
            paths_of.setdefault(key, []).append(path)
    return tuple(
        f"a patient with {len(own)} here ({printable(own[0])}{', …' if len(own) > 1 else ''}) and some in the "
        f"{seen[key]} split"
        for key, own in paths_of.items()
    )
