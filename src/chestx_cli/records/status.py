"""The record of `status`: contents of a study, outdated parts, and the commands that renew them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from chestx_cli.core.record import col
from chestx_cli.records.tabular import TabularRecord

# States of a variant, and of its results: current, to be made again, or missing.
CURRENT, STALE, UNUSABLE = "current", "stale", "unusable"
DONE, OUTDATED, MISSING = "yes", "outdated", "no"


@dataclass(frozen=True, kw_only=True)
class VariantStatusRow:
    """One variant; `depth` is its distance from the model that it descends from, `tested` and `timed` its results."""

    variant: str = col("Variant")
    parent: str | None = col("From")
    depth: int = col("Depth")
    state: str = col("State")
    reason: str = col("Reason", default="")
    tested: str = col("Tested")
    timed: str = col("Timed")
    size_bytes: int = col("File (bytes)", ",")
    created: str = col("Created")
    command: str = col("Command")


@dataclass(frozen=True, kw_only=True)
class RenewalRow:
    """A command that brings part of the study up to date, in the order in which to run them."""

    command: str = col("Command")
    reason: str = col("Because")


@dataclass(frozen=True, kw_only=True)
class StatusRecord(TabularRecord):
    """Contents of a study: its data, the lineage of its variants, outdated parts, and the decision."""

    schema: ClassVar[str] = "chestx.status/1"
    title: ClassVar[str] = "Status of a study"

    images: int = col("Images", ",")
    patients: int = col("Patients", ",")
    test_images: int = col("Test images", ",")
    classes: tuple[str, ...] = col("Classes", separator=", ")
    # The variant to ship by the current results; None without any.
    ship: str | None = col("Ship")
    rows: tuple[VariantStatusRow, ...] = ()
    renewals: tuple[RenewalRow, ...] = ()

    @property
    def headline(self) -> str:
        """Return the number of variants and how many are outdated."""
        outdated = sum(row.state != CURRENT for row in self.rows)
        return f"{len(self.rows)} variants, {outdated} outdated"
