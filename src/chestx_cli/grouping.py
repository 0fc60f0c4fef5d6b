"""Patient keys: which images belong to one person, told by a table, by DICOM or by file names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from chestx_cli.errors import DataError, UsageError
from chestx_cli.registry import Registry
from chestx_cli.split_records import UNMATCHED
from chestx_cli.tables import read_text_table

Rule = Callable[[str], str | None]

GROUP_RULES: Registry[Rule] = Registry("patient rule")

# The same rules where they can be read in two ways, with the reading that joins more images.
STRICT_RULES: dict[str, Rule] = {}

FROM_FILE = "--groups"
FROM_COLUMN = "manifest's group column"
FROM_DICOM = "DICOM PatientID"
PAEDIATRIC = "paediatric"


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
# are those of both series of healthy ones; nobody has said so in writing, hence the strict reading.
_by_pattern(f"{PAEDIATRIC} pneumonia", r"person(\d+)_(bacteria|virus)_\d+\.\w+", r"person\1_\2", strict_key=r"person\1")
_by_pattern(f"{PAEDIATRIC} normal (NORMAL2)", r"NORMAL2-IM-(\d+)-.*\.\w+", r"normal2-im-\1", strict_key=r"im-\1")
_by_pattern(f"{PAEDIATRIC} normal (IM)", r"IM-(\d+)-.*\.\w+", r"im-\1")
# Wang et al., ChestX-ray8, CVPR 2017: patient number, follow-up number.
_by_pattern("NIH", r"(\d+)_(\d+)\.png", r"nih-\1")


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """The patient key of each image, and the rule that gave it."""

    keys: tuple[str, ...]
    rules: tuple[str, ...]

    @property
    def matched(self) -> dict[str, int]:
        """Return how many images each rule told the patient of."""
        return dict(Counter(self.rules))

    @property
    def unmatched(self) -> int:
        """How many images no rule knew."""
        return self.rules.count(UNMATCHED)

    def take(self, rows: Sequence[int]) -> Grouping:
        """Return the grouping of some rows only."""
        return Grouping(keys=tuple(self.keys[row] for row in rows), rules=tuple(self.rules[row] for row in rows))

    def overridden(self, keys: Sequence[str | None], rule: str) -> Grouping:
        """Return the grouping with the keys of a better source wherever it has one."""
        pairs = [
            (mine, known) if key is None else (key, rule)
            for key, mine, known in zip(keys, self.keys, self.rules, strict=True)
        ]
        return Grouping(keys=tuple(key for key, _ in pairs), rules=tuple(known for _, known in pairs))


def read_groups(table: Path, paths: Sequence[str]) -> tuple[str | None, ...]:
    """Return the patient that a CSV with the columns path and group tells of each image, None where it tells nothing.

    Its paths are those of the images below the data folder. Raises DataError where it cannot be used.
    """
    remedy = "it must be CSV with the columns path,group; paths are relative to the data, as NORMAL/a.png"
    read = read_text_table(table, "the table of patients", remedy)
    if not {"path", "group"} <= set(read.columns):
        raise DataError(f"{table} lacks the column path or group", remedy)
    listed, keys = (read[name].str.strip() for name in ("path", "group"))
    if (keys == "").any():
        raise DataError(f"{table} has no group in line {keys.index[keys == ''][0] + 2}", "fill it in")
    if listed.duplicated().any():
        raise DataError(f"{table} lists {listed[listed.duplicated()].iloc[0]} twice", "remove one of the lines")
    told = dict(zip(listed, keys, strict=True))
    if not any(path in told for path in paths):
        raise DataError(f"{table} tells the patient of none of the images", remedy)
    return tuple(told.get(path) for path in paths)


def grouping_of(
    paths: Sequence[str], column: Sequence[str] | None, table: Path | None, group_regex: str | None, *, strict: bool
) -> Grouping:
    """Return each image's patient by a manifest's column, or by a table before file names; DICOM is not asked here.

    Raises UsageError where a column and another source are given, DataError for a table that cannot be used.
    """
    if column is None:
        by_name = group_by_name(paths, group_regex, strict=strict)
        return by_name if table is None else by_name.overridden(read_groups(table, paths), FROM_FILE)
    if group_regex is not None or table is not None or strict:
        flag = "--group-regex" if group_regex is not None else "--groups" if table is not None else "--strict-groups"
        raise UsageError(f"the manifest has a group column, and {flag} is given", "use one of them")
    return Grouping(keys=tuple(column), rules=(FROM_COLUMN,) * len(column))


def with_dicom(told: Grouping, patients: Sequence[str | None]) -> Grouping:
    """Return the patients with those of DICOM files, which count less than a table and more than a file name."""
    if not any(patients):
        return told
    keys = [
        None if rule in (FROM_FILE, FROM_COLUMN) or patient is None else dicom_key(patient)
        for rule, patient in zip(told.rules, patients, strict=True)
    ]
    return told.overridden(keys, FROM_DICOM)


def dicom_key(patient: str) -> str:
    """Return the key of a patient that DICOM tells."""
    return f"dicom-{patient}"


def group_by_name(paths: Sequence[str], group_regex: str | None = None, *, strict: bool = False) -> Grouping:
    """Return each image's patient by the known rules, or by `group_regex` alone where it is given.

    The expression is searched in the file's relative path (with forward slashes); its first group, or the group named
    `patient`, is the key. An image that nothing matches is a patient of its own. Raises UsageError for an expression
    that cannot be used.
    """
    rules = (
        {"--group-regex": _regex_rule(group_regex)}
        if group_regex
        else {**GROUP_RULES, **(STRICT_RULES if strict else {})}
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
