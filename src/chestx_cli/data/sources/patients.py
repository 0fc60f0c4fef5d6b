"""Patient keys, which group the images of one person: from a table, DICOM or file names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from chestx_cli.core.errors import DataError, UsageError
from chestx_cli.core.printable import printable
from chestx_cli.core.registry import Registry
from chestx_cli.data.sources.manifest_files import tidy_paths
from chestx_cli.data.sources.names import is_nobody
from chestx_cli.data.sources.spreadsheets import read_sheet
from chestx_cli.records.split import UNMATCHED, TakenRow

Rule = Callable[[str], str | None]

GROUP_RULES: Registry[Rule] = Registry("patient rule", of=Callable)

# The ambiguous rules, with the interpretation that joins more images.
STRICT_RULES: dict[str, Rule] = {}

_COLUMNS = ("path", "group")
FROM_FILE = "--groups"
FROM_COLUMN = "manifest's group column"
FROM_REGEX = "--group-regex"
NOT_FROM_DICOM = "not from PatientID"
FROM_DICOM = "DICOM PatientID"
# Sources given by the user, which take precedence over those of the files.
BY_THE_USER = (FROM_FILE, FROM_COLUMN, FROM_REGEX)
PAEDIATRIC = "paediatric"
# With fewer DICOM files than this, most may belong to one patient.
LEAST_IMAGES_OF_ONE_ID = 10


def _by_pattern(name: str, pattern: str, key: str, *, strict_key: str = "") -> None:
    """Register a rule: a file name that matches `pattern` as a whole belongs to the patient `key`."""
    compiled = re.compile(pattern, re.IGNORECASE)

    def rule(file_name: str, key: str = key) -> str | None:
        match = compiled.fullmatch(file_name)
        return match.expand(key).lower() if match else None

    GROUP_RULES.add(name, rule)
    if strict_key:
        STRICT_RULES[name] = lambda file_name: rule(file_name, strict_key)


# Kermany, Zhang, Goldbaum, Mendeley Data 2018: the numbers of bacterial and viral patients are counted separately, as
# are those of both series of healthy ones; this is not documented, hence the strict reading. Images have one
# number more (person447_virus_921_1), or whatever other tools put before and behind the name of the original.
_BEFORE = r"(?:.*[^a-z0-9])?"
_PATHOGEN_PATTERN = _BEFORE + r"person[ _-]?(\d+)[ _-](bacteria|virus)(?![a-z]).*"
_by_pattern(f"{PAEDIATRIC} pneumonia", _PATHOGEN_PATTERN, r"person\1_\2", strict_key=r"person\1")
_by_pattern(f"{PAEDIATRIC} normal (NORMAL2)", _BEFORE + r"NORMAL2-IM-(\d+)-.*", r"normal2-im-\1", strict_key=r"im-\1")
_by_pattern(f"{PAEDIATRIC} normal (IM)", _BEFORE + r"IM-(\d+)-.*", r"im-\1")
# Its later edition: disease, randomised patient number, number of the patient's image.
_by_pattern(f"{PAEDIATRIC} later edition", _BEFORE + r"(?:NORMAL|BACTERIA|VIRUS)-(\d+)-\d{4}(?!\d).*", r"edition3-\1")
# Wang et al., ChestX-ray8, CVPR 2017: patient number, follow-up number.
_by_pattern("NIH", _BEFORE + r"(\d{8})_\d{3}(?!\d).*", r"nih-\1")


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """The patient key of each image, and the rule that determined it."""

    keys: tuple[str, ...]
    rules: tuple[str, ...]

    @property
    def matched(self) -> dict[str, int]:
        """Return the number of images per rule."""
        return dict(Counter(self.rules))

    @property
    def unmatched(self) -> int:
        """Return the number of images that match no rule."""
        return self.rules.count(UNMATCHED)

    def take(self, rows: Sequence[int]) -> Grouping:
        """Return the grouping of the given rows."""
        return Grouping(keys=tuple(self.keys[row] for row in rows), rules=tuple(self.rules[row] for row in rows))

    def overridden(self, keys: Sequence[str | None], rule: str) -> Grouping:
        """Return the grouping with keys replaced by those of a better source, where it has one."""
        pairs = [
            (mine, known) if key is None else (key, rule)
            for key, mine, known in zip(keys, self.keys, self.rules, strict=True)
        ]
        return Grouping(keys=tuple(key for key, _ in pairs), rules=tuple(known for _, known in pairs))


def read_groups(table: Path, paths: Sequence[str]) -> tuple[str | None, ...]:
    """Return the patient of each image from a CSV file with the columns path and group; None for images missing there.

    Its paths are relative to the data folder. Raises DataError for an unusable table.
    """
    remedy = "it must be CSV or Parquet with the columns path,group; paths are relative to the data, as NORMAL/a.png"
    sheet = read_sheet(table, "the table of patients", remedy, _COLUMNS)
    if not set(_COLUMNS) <= set(sheet.table.columns):
        raise DataError(f"{table} lacks the column path or group", remedy)
    listed, keys = ([str(cell).strip() for cell in sheet.table[name].tolist()] for name in _COLUMNS)
    if "" in keys:
        raise DataError(f"{table} has no group in {sheet.line_of(sheet.table.index[keys.index('')])}", "fill it in")
    listed, _ = tidy_paths(listed, table.parent)
    known = dict(zip(listed, keys, strict=True))
    if len(known) < len(listed):
        twice = next(path for path, n in Counter(listed).items() if n > 1)
        raise DataError(f"{table} lists {printable(twice)} twice", "remove one of the lines")
    if not any(path in known for path in paths):
        raise DataError(f"{table} has the patient of none of the images, such as {printable(paths[0])}", remedy)
    return tuple(known.get(path) for path in paths)


def grouping_of(
    paths: Sequence[str], column: Sequence[str] | None, table: Path | None, group_regex: str | None, *, strict: bool
) -> Grouping:
    """Return each image's patient by a manifest column, or by a table before file names; DICOM is not read here.

    Raises UsageError for a column together with another source, DataError for an unusable table.
    """
    if column is None:
        by_name = group_by_name(paths, group_regex, strict=strict)
        return by_name if table is None else by_name.overridden(read_groups(table, paths), FROM_FILE)
    if group_regex is not None or table is not None or strict:
        flag = "--group-regex" if group_regex is not None else "--groups" if table is not None else "--strict-groups"
        raise UsageError(f"the manifest has a group column, and {flag} was given", "use one of them")
    return Grouping(keys=tuple(column), rules=(FROM_COLUMN,) * len(column))


def with_dicom(grouping: Grouping, patients: Sequence[str | None]) -> Grouping:
    """Add the patients of DICOM files, which take precedence over names but not over the sources given by the user.

    A PatientID that was removed, or that nearly all files share, identifies no patient.
    """
    nobody = ids_of_nobody(patients)
    keys = [
        None if rule in BY_THE_USER or patient is None or patient in nobody else dicom_key(patient)
        for rule, patient in zip(grouping.rules, patients, strict=True)
    ]
    return grouping.overridden(keys, FROM_DICOM) if any(key is not None for key in keys) else grouping


def ids_of_nobody(patients: Sequence[str | None]) -> frozenset[str]:
    """Return identifiers that identify no patient: words such as ANONYMOUS, and one shared by most of many images."""
    counts = Counter(patient for patient in patients if patient is not None)
    most = counts.total() / 2 if counts.total() >= LEAST_IMAGES_OF_ONE_ID else counts.total()
    return frozenset(patient for patient, n in counts.items() if is_nobody(patient) or n > most)


def taken_of_dicom(grouping: Grouping, patients: Sequence[str | None]) -> tuple[TakenRow, ...]:
    """Return the decisions about PatientIDs of DICOM files that do not identify a patient."""
    nobody = ids_of_nobody(patients)
    rows = []
    named = {patient for patient in nobody if is_nobody(patient)}
    for group, what in ((named, "a placeholder"), (nobody - named, "the same identifier in most files")):
        if images := sum(patient in group for patient in patients):
            rows.append(TakenRow(matter="Patient", taken_as=NOT_FROM_DICOM, because=what, images=images))
    outranked = sum(
        rule == FROM_REGEX and patient is not None and patient not in nobody
        for rule, patient in zip(grouping.rules, patients, strict=True)
    )
    if outranked:
        because = "given; takes precedence over PatientID"
        rows.append(TakenRow(matter="Patient", taken_as=f"by {FROM_REGEX}", because=because, images=outranked))
    return tuple(rows)


def dicom_key(patient: str) -> str:
    """Return the key of a patient read from DICOM."""
    return f"dicom-{patient}"


def group_by_name(paths: Sequence[str], group_regex: str | None = None, *, strict: bool = False) -> Grouping:
    """Return each image's patient by the known rules, or by `group_regex` alone if given.

    The expression is searched in the relative path of the file (with forward slashes); its first group, or the group
    named `patient`, is the key. An image without a match counts as its own patient. Raises UsageError for an invalid
    expression.
    """
    rules = (
        {FROM_REGEX: _regex_rule(group_regex)} if group_regex else {**GROUP_RULES, **(STRICT_RULES if strict else {})}
    )
    keys: list[str] = []
    names: list[str] = []
    for path in paths:
        subject = path if group_regex else PurePosixPath(path).name
        name, key = next(
            ((name, key) for name, rule in rules.items() if (key := rule(subject)) is not None),
            (UNMATCHED, f"image:{path}"),
        )
        keys.append(key)
        names.append(name)
    return Grouping(keys=tuple(keys), rules=tuple(names))


def _regex_rule(group_regex: str) -> Rule:
    try:
        compiled = re.compile(group_regex)
    except re.error as error:
        raise UsageError(
            f"--group-regex {group_regex!r} is not a regular expression: {error}", "correct it, as in 'patient(\\d+)'"
        ) from error
    if not compiled.groups:
        raise UsageError(
            f"--group-regex {group_regex!r} has no group", "put the patient's part in parentheses: 'patient(\\d+)'"
        )
    wanted: str | int = "patient" if "patient" in compiled.groupindex else 1

    def rule(path: str) -> str | None:
        match = compiled.search(path)
        return match[wanted] if match and match[wanted] else None

    return rule


def pathogen_of(name: str) -> str | None:
    """Return the pathogen in a file name of the public paediatric set, `normal` for healthy patients."""
    match = re.fullmatch(_PATHOGEN_PATTERN, name, re.IGNORECASE)
    if match:
        return match[2].lower()
    rule = group_by_name([name]).rules[0]
    return "normal" if rule.startswith(f"{PAEDIATRIC} normal") else None
