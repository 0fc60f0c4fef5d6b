"""Label tables of public data sets, recognised by their columns: images with the label of interest, and patients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from chestx_cli.core.errors import DataError, UsageError
from chestx_cli.core.options import Opt
from chestx_cli.core.registry import Registry
from chestx_cli.data.sources.names import class_key
from chestx_cli.records.split import TakenRow

if TYPE_CHECKING:
    from collections.abc import Collection

    from chestx_cli.data.sources.spreadsheets import Sheet

PNEUMONIA = "Pneumonia"
FLAG = "--labels-from"


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Selected rows of a table, and the image file name of each, with or without extension."""

    rows: list[int]
    names: list[str]
    labels: list[str]
    groups: list[str]
    taken: tuple[TakenRow, ...]


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """A public label table: its name, its columns, and its reader, which takes a label of interest or the default."""

    title: str
    columns: frozenset[str]
    read: Callable[[Sheet, str | None], Labelled]


LABEL_TABLES: Registry[LabelTable] = Registry("label table", of=LabelTable)

LabelsFrom = Annotated[
    str | None,
    Opt(
        help="Public data set that this label table is from.",
        choices=LABEL_TABLES,
    ),
]


def label_table_of(columns: Collection[str]) -> str | None:
    """Return the name of the table with these columns."""
    return next((name for name, entry in LABEL_TABLES.items() if entry.columns <= set(columns)), None)


def _read_nih(sheet: Sheet, finding: str | None) -> Labelled:
    """Read `Data_Entry_2017.csv`: Wang et al., ChestX-ray8, CVPR 2017. Several findings are joined by bars."""
    names, cells, patients = (
        [str(cell).strip() for cell in sheet.table[column].tolist()]
        for column in ("image index", "finding labels", "patient id")
    )
    findings = [[part.strip() for part in cell.split("|")] for cell in cells]
    none = "No Finding"
    known = sorted({one for names in findings for one in names} - {none})
    wanted = next((one for one in known if class_key(one) == class_key(finding or PNEUMONIA)), None)
    if wanted is None:
        raise UsageError(
            f"no image of the table has the finding {finding or PNEUMONIA!r}",
            f"name one of its findings with --positive: {', '.join(known) or 'it has none'}",
        )
    label_of = [wanted if wanted in names else none if names == [none] else None for names in findings]
    rows = [row for row, label in enumerate(label_of) if label is not None]
    others = len(label_of) - len(rows)
    return Labelled(
        rows=rows,
        names=[names[row] for row in rows],
        labels=[label for label in label_of if label is not None],
        groups=[patients[row] for row in rows],
        taken=(
            TakenRow(
                matter="Labels",
                taken_as=f"{wanted} and {none}; {others:,} images with other findings only are left out",
                because=f"{FLAG} nih, label of interest {wanted}"
                + ("" if finding else " unless --positive names another"),
                images=len(rows),
            ),
        ),
    )


def _read_rsna(sheet: Sheet, finding: str | None) -> Labelled:
    """Read `stage_2_train_labels.csv` of the RSNA Pneumonia Detection Challenge 2018: one line per box, or one."""
    if finding is not None and class_key(finding) != class_key(PNEUMONIA):
        raise UsageError(f"RSNA's table has no finding {finding!r}", f"its label is {PNEUMONIA}: leave --positive out")
    label_of = {"1": PNEUMONIA, "0": f"No {PNEUMONIA}"}
    first: dict[str, int] = {}
    labels: dict[str, str] = {}
    ids, targets = ([str(cell).strip() for cell in sheet.table[name].tolist()] for name in ("patientid", "target"))
    for row, (image, target) in enumerate(zip(ids, targets, strict=True)):
        label = label_of.get(target.removesuffix(".0"))
        if label is None or labels.setdefault(image, label) != label:
            line = sheet.line_of(sheet.table.index[row])
            what = f"no 0 or 1 as Target in {line}" if label is None else f"two Targets for one image, in {line}"
            raise DataError(f"RSNA's table has {what}", "correct it, or leave the line out")
        first.setdefault(image, row)
    return Labelled(
        rows=list(first.values()),
        names=list(first),
        labels=[labels[image] for image in first],
        groups=list(first),
        taken=(
            TakenRow(
                matter="Labels",
                taken_as=f"{PNEUMONIA} where Target is 1, of any of an image's boxes",
                because=f"{FLAG} rsna",
                images=len(first),
            ),
            TakenRow(
                matter="Patient",
                taken_as="one per patientId",
                because="one per image; several may be of one NIH patient: give --groups if known",
                images=len(first),
            ),
        ),
    )


LABEL_TABLES.add(
    "nih",
    LabelTable(
        title="NIH ChestX-ray (Data_Entry_2017.csv)",
        columns=frozenset({"image index", "finding labels", "patient id"}),
        read=_read_nih,
    ),
)
LABEL_TABLES.add(
    "rsna",
    LabelTable(
        title="RSNA's Pneumonia Detection Challenge (stage_2_train_labels.csv)",
        columns=frozenset({"patientid", "target"}),
        read=_read_rsna,
    ),
)
