"""Benchmark results: rows with targets, stored as JSON, shown as a table and a figure."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tools.harness.processes import Spread

# Keeps numbers readable on top of the line.
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 1}
FORMATS = {"×": "{:.2f}×", "s": "{:.2f} s", "%": "{:.1%}", "": "{:.4g}", "MiB": "{:,.0f} MiB"}
JSON_FILE = "performance.json"
FIGURE_FILE = "figures/performance.png"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One result: its name, median and range over the rounds, and its target.

    `higher` is true if more is better, `group` is the name for selecting it, `detail` states the underlying values.
    """

    group: str
    what: str
    unit: str
    value: float
    low: float
    high: float
    rounds: int
    target: float | None = None
    higher: bool = True
    detail: str = ""

    @property
    def reached(self) -> bool | None:
        """Return whether the target is reached; None without one."""
        if self.target is None:
            return None
        return self.value >= self.target if self.higher else self.value <= self.target

    @property
    def score(self) -> float | None:
        """Return the result as a multiple of its target, above 1 if better; None for a target of zero."""
        if not self.target:
            return None
        return self.value / self.target if self.higher else self.target / self.value

    def shown(self, value: float) -> str:
        """Return a value with its unit."""
        return FORMATS[self.unit].format(value)


def row_of(spread: Spread, rounds: int, **values: Any) -> Row:
    """Return a row of a median and its range."""
    return Row(value=spread.median, low=spread.low, high=spread.high, rounds=rounds, **values)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the study: the median seconds of chestx's command and of the notebook's section."""

    step: str
    chestx_s: float
    notebook_s: float


@dataclass(kw_only=True)
class Results:
    """All rows measured on one machine, in the order of groups, with the command used for each group."""

    machine: dict[str, str]
    operations_per_s: dict[str, float]
    rows: list[Row] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    commands: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def replace_group(self, group: str, rows: list[Row], command: str, note: str) -> None:
        """Replace the rows of a group."""
        self.rows = [row for row in self.rows if row.group != group] + rows
        self.commands[group] = command
        self.notes.pop(group, None)
        if note:
            self.notes[group] = note

    def to_json(self) -> str:
        """Return all results as one JSON document."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"


def read_results(path: Path, machine: dict[str, str], operations_per_s: dict[str, float]) -> Results:
    """Return the stored results of the same machine, or empty ones: results of two machines are never mixed."""
    if path.exists():
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["machine"] == machine:
            return Results(
                machine=machine,
                operations_per_s=operations_per_s,
                rows=[Row(**row) for row in document["rows"]],
                steps=[Step(**step) for step in document["steps"]],
                commands=document["commands"],
                notes=document["notes"],
            )
    return Results(machine=machine, operations_per_s=operations_per_s)


def markdown(results: Results, order: tuple[str, ...]) -> str:
    """Return the section of docs/results.md."""
    machine = results.machine
    peaks = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in results.operations_per_s.items())
    lines = [
        "## Performance",
        "",
        f"Machine: {machine['processor']}, {machine['threads']} processors ({machine['instructions']}), "
        f"{machine['memory']}; {machine['system']}, Python {machine['python']}, torch {machine['torch']}, torchvision "
        f"{machine['torchvision']}, onnxruntime {machine['onnxruntime']}. The most that a large matrix product reaches "
        f"here, in 10⁹ operations per second: {peaks}.",
        "",
        "Every figure is the median over rounds in which both sides took turns, with the least and the greatest. "
        "What each row means: [performance.md](performance.md).",
        "",
        "| what | median | range | rounds | target | reached | from |",
        "|---|---:|---:|---:|---:|---|---|",
    ]
    for row in _ordered(results.rows, order):
        sign = "≥" if row.higher else "≤"
        target = "–" if row.target is None else f"{sign} {row.shown(row.target)}"
        reached = {True: "yes", False: "**no**", None: "–"}[row.reached]
        lines.append(
            f"| {row.what} | {row.shown(row.value)} | {row.shown(row.low)}–{row.shown(row.high)} | {row.rounds} "
            f"| {target} | {reached} | {row.detail} |"
        )
    lines += ["", f"![Each figure against its target]({FIGURE_FILE})", ""]
    if results.steps:
        lines += [
            "The steps of the study, in seconds of wall time; each chestx command is a process of its own, the "
            "notebook is one process whose imports are counted with its training.",
            "",
            "| step | chestx | notebook | ratio |",
            "|---|---:|---:|---:|",
        ]
        lines += [
            f"| {step.step} | {step.chestx_s:.1f} | {step.notebook_s:.1f} | {step.notebook_s / step.chestx_s:.2f} |"
            for step in results.steps
        ]
        lines.append("")
    lines += [f"- {results.notes[group]}" for group in order if group in results.notes]
    lines += ["", "Measured with:", "", "```"]
    lines += dict.fromkeys(results.commands[group] for group in order if group in results.commands)
    return "\n".join([*lines, "```"])


def _ordered(rows: list[Row], order: tuple[str, ...]) -> list[Row]:
    return sorted(rows, key=lambda row: order.index(row.group))


def draw(results: Results, order: tuple[str, ...], path: Path) -> None:
    """Draw each result as a multiple of its target; 1 is on target, further right is better."""
    import matplotlib

    from chestx_cli.reporting.figures.style import BLUE, GREY, STYLE, VERMILLION, new_figure

    rows = [row for row in _ordered(results.rows, order) if row.score is not None]
    with matplotlib.rc_context(STYLE):
        note = "Whiskers: least and greatest round. Bars right of the line reach their target."
        figure = new_figure(1.6 + 0.34 * len(rows), "Each figure as a multiple of its target", note=note)
        axes = figure.subplots()
        for place, row in enumerate(rows):
            score = row.score or 0.0
            label = f"{row.shown(row.value)}  ({'≥' if row.higher else '≤'} {row.shown(row.target or 0.0)})"
            ends = [dataclasses.replace(row, value=value).score or 0.0 for value in (row.low, row.high)]
            # Values beyond the axis are drawn at its end.
            score, low, high = (min(max(value, 0.1), 20.0) for value in (score, min(ends), max(ends)))
            axes.barh(place, score, color=BLUE if row.reached else VERMILLION, height=0.6)
            axes.plot([low, high], [place, place], color=GREY, linewidth=1)
            axes.text(max(score, high) * 1.04, place, label, va="center", fontsize=8, bbox=PAPER)
        axes.set_yticks(range(len(rows)), [row.what for row in rows])
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.axvline(1, color="black", linewidth=1, zorder=0)
        axes.minorticks_off()
        axes.set_xlim(0.1, 60)
        axes.set_xticks([0.1, 0.2, 0.5, 1, 2, 5, 10, 20], ["0.1", "0.2", "0.5", "1", "2", "5", "10", "20"])
        axes.set_xlabel("multiple of the target")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
