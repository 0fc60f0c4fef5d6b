"""Figures of a study over folds and seeds: differences from the baseline, latency, and what single seeds give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.core.printable import counted
from chestx_cli.core.record import Column
from chestx_cli.evaluation.endpoints import endpoint_of
from chestx_cli.records.variant import BASELINE
from chestx_cli.reporting.figures.pareto import Point, front_figure
from chestx_cli.reporting.figures.style import (
    BLACK,
    BLUE,
    GREY,
    LINE_COLOURS,
    PALE,
    SMALL_PT,
    VERMILLION,
    add_legend,
    new_figure,
    shown,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from chestx_cli.evaluation.endpoints import Endpoint
    from chestx_cli.records.cells import PooledRow, StudyRecord

# The width at which the first screen shows its figure.
WIDTH_IN = 5.6
ROW_IN = 0.34
# Free space at both ends of the axis, as a share of its range.
ROOM = 0.06
NAME_CHARACTERS = 26
# Limit of the axis of differences, in margins or, if larger, seed noise floors: one variant far from the margin would
# otherwise compress all others near it, where the decision is made.
SCALES = 4.0


# As in tables, which show 99.8 % as "below 100%", not as all.
SHARE = Column(heading="", spec=".0%")


@dataclass(frozen=True, kw_only=True)
class PooledFigure:
    """A figure of a study over folds and seeds; `draw` returns None where the study lacks the results for it."""

    name: str
    title: str
    caption: str
    draw: Callable[[StudyRecord], Figure | None]


def draw_differences(record: StudyRecord) -> Figure | None:
    """Draw each variant's difference from the baseline with its interval, the margin and the seed noise floor."""
    rows = [row for row in record.rows if row.difference is not None and row.difference_interval is not None]
    if not rows:
        return None
    endpoint = endpoint_of(record.endpoint)
    times = 100 if endpoint.is_share else 1
    fig = new_figure(
        1.75 + ROW_IN * len(rows),
        f"{endpoint.noun[0].upper()}{endpoint.noun[1:]} against the baseline: {counted(record.images, 'image')}",
        note=_noise_note(record, endpoint),
        width_in=WIDTH_IN,
    )
    axes = fig.subplots()
    if record.noise_floor:
        axes.axvspan(-times * record.noise_floor, times * record.noise_floor, color=PALE, zorder=0)
    axes.axvline(0, color=GREY, linewidth=1.0, zorder=1)
    axes.axvline(-times * record.margin, color=VERMILLION, linewidth=1.3, linestyle=(0, (4, 2)), zorder=2)
    floor = times * (record.noise_floor or 0.0)
    limit = SCALES * max(times * record.margin, floor)
    for y, row in enumerate(rows):
        assert row.difference is not None  # noqa: S101 - chosen above
        assert row.difference_interval is not None  # noqa: S101 - chosen above
        low, high = (times * end for end in row.difference_interval)
        _bar(axes, y, times * row.difference, (low, high), limit)
    _name_rows(axes, [row.variant for row in rows])
    _verdicts(axes, rows)
    ends = [times * end for row in rows for end in row.difference_interval or ()]
    shown_ends = [max(-limit, min(limit, end)) for end in ends]
    _set_range(axes, [*shown_ends, -times * record.margin, -floor, floor])
    axes.annotate(
        f"margin −{times * record.margin:g}",
        (-times * record.margin, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        fontsize=SMALL_PT,
        color=VERMILLION,
    )
    unit = "points" if endpoint.is_share else endpoint.noun
    axes.set_xlabel(f"{'Gain' if endpoint.is_loss else 'Difference'}, {unit}, 95 % interval (right of 0 is better)")
    return fig


def _design(record: StudyRecord) -> str:
    seeds = counted(len(record.seeds), "seed")
    return f"{counted(record.images, 'image')}, {record.folds} folds × {seeds}"


def _noise_note(record: StudyRecord, endpoint: Endpoint) -> str:
    if record.noise_floor is None:
        return "One seed: how much two trainings of one recipe differ is not known."
    floor = f"{100 * record.noise_floor:.1f} points" if endpoint.is_share else f"{record.noise_floor:.3f}"
    return f"Grey: two trainings of the baseline differ by up to {floor} (seed noise floor)."


def _bar(axes: Axes, y: float, value: float, ends: tuple[float, float], limit: float) -> None:
    """Draw a difference with its interval; arrows mark ends beyond the limit, a number a difference beyond it."""
    low, high = (max(-limit, min(limit, end)) for end in ends)
    axes.plot([low, high], [y, y], color=BLUE, linewidth=1.6, solid_capstyle="butt", zorder=3)
    for end, place, arrow in ((ends[0], low, "<"), (ends[1], high, ">")):
        # An interval wholly beyond the limit gets one arrow only, away from 0.
        if end == place or (arrow == "<") == (end < 0):
            marker = "|" if end == place else arrow
            axes.plot([place], [y], color=BLUE, marker=marker, markersize=7, linestyle="none", zorder=3)
    if abs(value) <= limit:
        axes.plot([value], [y], color=BLUE, marker="o", markersize=6.5, markeredgecolor="white", zorder=4)
        return
    side = -1 if value < 0 else 1
    inner = high if side < 0 else low
    axes.annotate(
        f"{value:+.3g}".replace("-", "−"),
        (inner, y),
        xytext=(-8 * side, 0),
        textcoords="offset points",
        ha="left" if side < 0 else "right",
        va="center",
        fontsize=SMALL_PT,
        color=BLUE,
    )


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [shown(name, NAME_CHARACTERS) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def _verdicts(axes: Axes, rows: Sequence[PooledRow]) -> None:
    for y, row in enumerate(rows):
        axes.annotate(
            row.verdict.replace(" (", "\n("),
            (1.02, y),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=SMALL_PT + 0.5,
            annotation_clip=False,
        )


def _set_range(axes: Axes, values: Sequence[float]) -> None:
    from matplotlib.ticker import MaxNLocator

    low, high = min(values), max(values)
    room = ROOM * (high - low)
    axes.set_xlim(low - room, high + room)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))


def draw_front(record: StudyRecord) -> Figure | None:
    """Draw the endpoint against latency; None if fewer than two variants are timed."""
    endpoint = endpoint_of(record.endpoint)
    points = [
        Point(
            label=shown(row.variant, NAME_CHARACTERS)
            + ("" if row.front_share is None else f" ({SHARE.text(row.front_share)})"),
            value=row.estimate,
            interval=row.interval,
            latency_ms=row.latency_p50_ms,
            is_reference=row.variant == BASELINE,
        )
        for row in record.rows
        if row.latency_p50_ms is not None
    ]
    if len(points) < 2:
        return None
    noun = f"{endpoint.noun[0].upper()}{endpoint.noun[1:]}"
    return front_figure(
        points,
        title=f"{noun} against latency: {_design(record)}",
        value_label=f"{noun}{' (smaller is better)' if endpoint.is_loss else ''}, 95 % interval",
        is_share=endpoint.is_share,
        is_loss=endpoint.is_loss,
    )


def draw_seeds(record: StudyRecord) -> Figure | None:
    """Draw each variant's value under each seed, and pooled with its interval; None for one seed."""
    if len(record.seeds) < 2:
        return None
    endpoint = endpoint_of(record.endpoint)
    times = 100 if endpoint.is_share else 1
    noun = f"{endpoint.noun[0].upper()}{endpoint.noun[1:]}"
    fig = new_figure(1.75 + ROW_IN * len(record.rows), f"{noun} by seed: {_design(record)}", width_in=WIDTH_IN + 1.2)
    axes = fig.subplots()
    place = {row.variant: y for y, row in enumerate(record.rows)}
    for y, row in enumerate(record.rows):
        ends = [times * end for end in row.interval]
        axes.plot(ends, [y, y], color=PALE, linewidth=9, solid_capstyle="butt", zorder=1)
        axes.plot([times * row.estimate], [y], color=BLACK, marker="|", markersize=13, linestyle="none", zorder=2)
    # With more seeds than colours, all dots have one colour: only their scatter matters then.
    is_named = len(record.seeds) <= len(LINE_COLOURS)
    handles = []
    for i, seed in enumerate(record.seeds):
        own = [row for row in record.seed_rows if row.seed == seed]
        (handle,) = axes.plot(
            [times * row.estimate for row in own],
            [place[row.variant] for row in own],
            color=LINE_COLOURS[i] if is_named else BLUE,
            marker="o",
            markersize=6,
            markeredgecolor="white",
            linestyle="none",
            zorder=3,
        )
        handles.append(handle)
    _name_rows(axes, list(place))
    _set_range(
        axes,
        [
            *(times * end for row in record.rows for end in row.interval),
            *(times * row.estimate for row in record.seed_rows),
        ],
    )
    axes.set_xlabel(f"{noun}{', %' if endpoint.is_share else ''}")
    if is_named:
        labels = [f"seed {seed}" for seed in record.seeds]
        add_legend(axes, handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


POOLED_FIGURES: tuple[PooledFigure, ...] = (
    PooledFigure(
        name="differences",
        title="Differences from the baseline",
        caption=(
            "An interval entirely right of the dashed margin: not inferior, if the correction and the guards agree. "
            "Within the grey band: no larger than the seed noise floor."
        ),
        draw=draw_differences,
    ),
    PooledFigure(
        name="front",
        title="Endpoint against latency",
        caption=(
            "The pooled endpoint with its 95 % interval against the median latency of one image. In brackets: the "
            "share of bootstrap draws of patients in which no faster variant is as good."
        ),
        draw=draw_front,
    ),
    PooledFigure(
        name="seeds",
        title="The endpoint under each seed",
        caption=(
            "Dots: one seed each, over all of its folds. Tick: the pooled value. Bar: its 95 % interval. Dots on one "
            "line differ only by the randomness of training."
        ),
        draw=draw_seeds,
    ),
)
