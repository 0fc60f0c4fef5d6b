"""Records of `split`: the classes and patients of each part, the audit of the images, and the folds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from chestx_cli.core.record import Document, col, renamed, report_only
from chestx_cli.records.tabular import Count, TabularRecord

TRAIN, VAL, TEST = "train", "val", "test"
SPLITS = (TRAIN, VAL, TEST)
# The rule recorded for images whose patient no rule identifies.
UNMATCHED = "no rule: each image its own patient"


@dataclass(frozen=True, kw_only=True)
class SplitRow:
    """One class in one part of the split."""

    split: str = col("Split")
    label: str = col("Class")
    images: int = col("Images", ",")
    patients: int = col("Patients", ",")
    share: float = col("Share of class", ".1%")


@dataclass(frozen=True, kw_only=True)
class GroupRuleRow:
    """Number of images whose patient was identified by one rule."""

    rule: str = col("Patient key from")
    images: int = col("Images", ",")


@dataclass(frozen=True, kw_only=True)
class BadImageRow:
    """A refused image; codes are those of `data.images.formats.refusals.Reason`."""

    image_id: str = col("Left out")
    path: str = col("File")
    code: str = col("Code")
    reason: str = col("Reason")


@dataclass(frozen=True, kw_only=True)
class RefusalRow:
    """Number of images refused for one reason, with the first of them."""

    code: str = col("Images refused")
    images: int = col("Images", ",")
    reason: str = col("Reason")
    first: str = col("First of them")


@dataclass(frozen=True, kw_only=True)
class LeftOutRow:
    """Number of files of a class left out for one reason."""

    label: str = col("Class")
    reason: str = col("Files left out")
    files: int = col("Files", ",")


@dataclass(frozen=True, kw_only=True)
class TakenRow:
    """How files that are ambiguous or contradict themselves were interpreted."""

    matter: str = col("Matter")
    taken_as: str = col("Taken as")
    because: str = col("Because of")
    images: int = col("Images", ",")


@dataclass(frozen=True, kw_only=True)
class AirRow:
    """Numbers of images of a class in which air is dark (as it should be), bright, or undecided."""

    label: str
    dark: int
    bright: int
    undecided: int


@dataclass(frozen=True, kw_only=True)
class FewLevelsRow:
    """An image with few distinct grey levels, of 256, and their number."""

    image_id: str
    levels: int


@dataclass(frozen=True, kw_only=True)
class UnmatchedRow:
    """An image of an unknown patient, in a set where patients of other images are known."""

    image_id: str = col("Image of unknown patient")


@dataclass(frozen=True, kw_only=True)
class DuplicateRow:
    """Number of pairs of image copies of one kind."""

    kind: str = col("Copies found as")
    pairs: int = col("Pairs", ",")
    within: int = col("Within a part", ",")
    across: int = col("Across parts", ",")
    across_labels: int = col("Across classes", ",")


@dataclass(frozen=True, kw_only=True)
class FormatRow:
    """File formats and sizes of one class; triples are quartiles."""

    label: str = col("Class")
    width_px: tuple[float, float, float] = col("Width px (quartiles)", ".0f")
    height_px: tuple[float, float, float] = col("Height px", ".0f")
    aspect: tuple[float, float, float] = col("Aspect", ".2f")
    bytes_per_pixel: tuple[float, float, float] = col("Bytes/pixel", ".3f")
    modes: str = col("Modes")
    file_types: str = col("File types")


@dataclass(frozen=True, kw_only=True)
class DataAudit:
    """Findings of reading all images; `stamps` are shown above every later table."""

    stamps: tuple[str, ...] = col("Stamps", separator=", ")
    matched_share: float = col("Images whose patient is known", ".1%")
    patients_before_merging: int = col("Patients before merging copies", ",")
    # For the public paediatric set, whose file names can be interpreted in two ways.
    paediatric_patients: int | None = col("Paediatric patients by number and pathogen", ",")
    paediatric_numbers: int | None = col("Paediatric patients by number alone", ",")
    format_auroc: float | None = col("AUROC of size, aspect, mode and file type alone", ".3f")
    format_bytes_auroc: float | None = col("AUROC of these and the file size", ".3f")
    duplicates: tuple[DuplicateRow, ...]
    formats: tuple[FormatRow, ...]
    unmatched: tuple[UnmatchedRow, ...]
    air: tuple[AirRow, ...] = ()
    few_levels: tuple[FewLevelsRow, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FoldRow:
    """One fold: its images are the test images; validation images are drawn from the others."""

    study: str = col("Fold")
    train_images: int = col("Train images", ",")
    val_images: int = col("Val images", ",")
    test_images: int = col("Test images", ",")
    test_patients: int = col("Test patients", ",")
    train_positive: float = col("Train positive", ".1%")
    val_positive: float = col("Val positive", ".1%")
    test_positive: float = col("Test positive", ".1%")
    split_csv_sha256: str = field()


@dataclass(frozen=True, kw_only=True)
class DividedRecord(TabularRecord):
    """What `split.json` and `folds.json` have in common: the data, and the decisions made in reading them.

    It contains local paths and stays with the data: `data` is their folder, `source` the given folder or manifest.
    """

    source: str
    data: str
    layout: str = col("Layout")
    images: Count = col("Images", ",")
    patients: Count = col("Patients", ",")
    classes: tuple[str, ...]
    positive: str = col("Positive class")
    ignored_files: Count = col("Other files ignored", ",")
    # Narrowed by each record; declared here for its place among the tables.
    rows: tuple[SplitRow, ...] | tuple[FoldRow, ...]
    group_rules: tuple[GroupRuleRow, ...]
    taken: tuple[TakenRow, ...] = ()
    left_out: tuple[LeftOutRow, ...] = ()
    refusals: tuple[RefusalRow, ...] = ()
    bad_images: tuple[BadImageRow, ...] = report_only(default=())
    # Bits of images with more than 8: values are scaled from 0 to 2^value_bits - 1. None if it was not determined.
    value_bits: int | None = None
    # Of DICOM images: the window or table that they are shown by, and whether lateral views may be among them. None if
    # the split was made before that was an option: then they may, and so may images of any modality.
    window: str | None = None
    lateral: bool | None = None


@dataclass(frozen=True, kw_only=True)
class SplitRecord(DividedRecord):
    """`split.json`: the data and their division; `fold` is set for a fold."""

    schema: ClassVar[str] = "chestx.split/5"
    reads: ClassVar[tuple[str, ...]] = ("chestx.split/3", "chestx.split/4")
    title: ClassVar[str] = "Split"
    remedy: ClassVar[str] = 'run "chestx split DATA --force" to make it again, or restore the file'

    rows: tuple[SplitRow, ...]
    audit: DataAudit | None = None
    fold: int | None = None
    split_csv_sha256: str = col("Manifest sha256")

    @classmethod
    def upgraded(cls, document: Document) -> Document:
        """Rename the audit's field for the patients before merging."""
        return {**document, "audit": renamed(document.get("audit"), "told_patients", "patients_before_merging")}

    @property
    def headline(self) -> str:
        """Return the numbers of images and patients, and of images per part."""
        parts = [f"{sum(row.images for row in self.rows if row.split == part):,} {part}" for part in SPLITS]
        return f"{self.images:,} images of {self.patients:,} patients: {', '.join(parts)}"


@dataclass(frozen=True, kw_only=True)
class FoldsRecord(DividedRecord):
    """`folds.json`: a study with one subfolder per fold, each a study, so that every image is tested once."""

    schema: ClassVar[str] = "chestx.folds/4"
    reads: ClassVar[tuple[str, ...]] = ("chestx.folds/3",)
    title: ClassVar[str] = "Folds"
    remedy: ClassVar[str] = 'run "chestx split DATA --folds N --force" to make it again, or restore the file'

    rows: tuple[FoldRow, ...]
    audit: DataAudit

    @property
    def headline(self) -> str:
        """Return the numbers of folds, images and patients."""
        return f"{len(self.rows)} folds of {self.images:,} images of {self.patients:,} patients"
