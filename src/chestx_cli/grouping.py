"""Patient keys: which images belong to one person, told from file names by known rules."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from chestx_cli.errors import UsageError
from chestx_cli.registry import Registry

Rule = Callable[[str], str | None]

GROUP_RULES: Registry[Rule] = Registry("patient rule")

UNMATCHED = "no rule: each image its own patient"


def _by_pattern(name: str, pattern: str, key: str) -> None:
    """Register a rule: a file name that matches `pattern` as a whole belongs to the patient `key`."""
    compiled = re.compile(pattern, re.IGNORECASE)

    def rule(file_name: str) -> str | None:
        match = compiled.fullmatch(file_name)
        return match.expand(key).lower() if match else None

    GROUP_RULES.add(name, rule)


# Kermany, Zhang, Goldbaum, Mendeley Data 2018: the numbers of bacterial and viral patients are counted separately.
_by_pattern("paediatric pneumonia", r"person(\d+)_(bacteria|virus)_\d+\.\w+", r"person\1_\2")
_by_pattern("paediatric normal (NORMAL2)", r"NORMAL2-IM-(\d+)-.*\.\w+", r"normal2-im-\1")
_by_pattern("paediatric normal (IM)", r"IM-(\d+)-.*\.\w+", r"im-\1")
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


def group_by_name(paths: Sequence[str], group_regex: str | None = None) -> Grouping:
    """Return each image's patient by the known rules, or by `group_regex` alone where it is given.

    The expression is searched in the file's relative path (with forward slashes); its first group, or the group named
    `patient`, is the key. An image that nothing matches is a patient of its own. Raises UsageError for an expression
    that cannot be used.
    """
    rules = {"--group-regex": _regex_rule(group_regex)} if group_regex else dict(GROUP_RULES)
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
