"""Results of the reliability tests, stored as JSON and as the table of docs/reliability.md."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from chestx_cli.core.files import write_atomic
from tools.harness.documents import insert

MARKER, WRITER = "reliability", "reliability tool"
MAX_FAILURES = 20


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One row: cases passed, their time and memory, and the condition for passing.

    `seconds` is the wall time of all cases, `slowest_s` that of the slowest; `peak_bytes` is the largest resident
    memory of a process that ran a case. Either is None if not applicable. `failures` describes the first failed cases.
    """

    test: str
    passed: int
    total: int
    criterion: str
    seconds: float
    slowest_s: float | None = None
    peak_bytes: int | None = None
    failures: tuple[str, ...] = ()

    @property
    def reached(self) -> bool:
        """Return whether every case passed; false for a test without cases, which has shown nothing."""
        return self.total > 0 and self.passed == self.total


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The results of one group, with the selected length, the command and the machine."""

    length: str
    command: str
    machine: dict[str, str]
    figures: tuple[Figure, ...]


@dataclass(kw_only=True)
class Results:
    """The results of all groups by name; those of groups not measured again are kept."""

    groups: dict[str, Measured] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the JSON document, and the table into the Markdown file of the same name beside it."""
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        write_atomic(path, text)
        document = path.with_suffix(".md")
        if document.exists():
            insert(document, MARKER, markdown(self), by=WRITER)


def read_results(path: Path) -> Results:
    """Return the stored results, or empty ones."""
    if not path.exists():
        return Results()
    document = json.loads(path.read_text(encoding="utf-8"))
    return Results(
        groups={
            name: Measured(
                length=part["length"],
                command=part["command"],
                machine=part["machine"],
                figures=tuple(Figure(**{**row, "failures": tuple(row["failures"])}) for row in part["figures"]),
            )
            for name, part in document["groups"].items()
        }
    )


def markdown(results: Results) -> str:
    """Return the table, the machines and the commands."""
    lines = [
        "| group | test | passed | slowest case | peak memory | in all | each case passes if |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for name, part in sorted(results.groups.items()):
        for row in part.figures:
            passed = f"{row.passed:,} of {row.total:,}"
            slowest = "–" if row.slowest_s is None else f"{row.slowest_s:.2f} s"
            peak = "–" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:,.0f} MiB"
            shown = name if part.length == "full" else f"{name} ({part.length})"
            lines.append(
                f"| {shown} | {row.test} | {passed if row.reached else f'**{passed}**'} | {slowest} | {peak} "
                f"| {row.seconds:,.0f} s | {row.criterion} |"
            )
    machines = dict.fromkeys(_machine(part.machine) for _, part in sorted(results.groups.items()))
    lines += ["", *(f"Machine: {machine}." for machine in machines), "", "Measured with:", "", "```"]
    lines += dict.fromkeys(part.command for _, part in sorted(results.groups.items()))
    return "\n".join([*lines, "```"])


def _machine(machine: dict[str, str]) -> str:
    return (
        f"{machine['processor']}, {machine['threads']} processors, {machine['memory']}; {machine['system']}, "
        f"Python {machine['python']}, torch {machine['torch']}"
    )
