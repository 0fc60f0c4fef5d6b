"""Images that differ between a stored split and the data as they are now, by names, labels and patients."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chestx_cli.core.printable import printable
from chestx_cli.data.sources.patients import BY_THE_USER, FROM_DICOM
from chestx_cli.records.split import TRAIN, VAL

if TYPE_CHECKING:
    import pandas as pd

    from chestx_cli.data.sources.listing import Listing
    from chestx_cli.data.sources.patients import Grouping


@dataclass(frozen=True, kw_only=True)
class DifferingImages:
    """Numbers of images added, removed, and with another label, patient or part; false if there are none."""

    added: int
    removed: int
    changed: int

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    @property
    def counts(self) -> str:
        """Return the numbers in words."""
        return f"{self.added} images added, {self.removed} removed, {self.changed} with another label, patient or part"


def differing_images(
    manifest: pd.DataFrame, listing: Listing, grouping: Grouping, *, left_out: Collection[str]
) -> DifferingImages:
    """Return how a listing and its patients differ from a split's manifest; `left_out`: paths of unreadable images.

    manifest: columns path, label, patient, patient_from and split, as text.
    """
    stored: dict[str, Any] = {str(row.path): row for row in manifest.itertuples(index=False)}
    present = [row for row, path in enumerate(listing.paths) if printable(path) not in left_out]
    kept = [row for row in present if listing.paths[row] in stored]
    # Patients are compared by their sets of images, since hashes cannot be computed from names alone.
    same_patient = _one_to_one(
        [_patient_key(stored[listing.paths[row]], grouping.keys[row], grouping.rules[row]) for row in kept],
        [stored[listing.paths[row]].patient for row in kept],
    )
    changed = sum(
        not same
        or listing.labels[row] != stored[listing.paths[row]].label
        or (
            listing.parts is not None
            and listing.parts[row] != _supplied_part(listing.parts, stored[listing.paths[row]].split)
        )
        for row, same in zip(kept, same_patient, strict=True)
    )
    return DifferingImages(added=len(present) - len(kept), removed=len(stored) - len(kept), changed=changed)


def _supplied_part(parts: Sequence[str], part: str) -> str:
    """Return the part that the data supplied for an image: train for val images if val was drawn from train."""
    return TRAIN if part == VAL and VAL not in parts else part


def _patient_key(row: Any, key: str, rule: str) -> tuple[str, str]:
    """Return the patient key of an image without opening it: for DICOM, the identifier from the stored split."""
    if row.patient_from == FROM_DICOM and rule not in BY_THE_USER:
        return FROM_DICOM, row.patient
    return "", key


def _one_to_one(keys: Sequence[object], hashes: Sequence[str]) -> list[bool]:
    """Return for each key [N] whether it always occurs with the same hash, and that hash only with this key."""
    hash_of, key_of = dict(zip(keys, hashes, strict=True)), dict(zip(hashes, keys, strict=True))
    pairs = list(zip(keys, hashes, strict=True))
    ambiguous = {key for key, value in pairs if hash_of[key] != value or key_of[value] != key}
    return [key not in ambiguous for key in keys]
