"""Figures that compare variants: accuracy with its interval, zeros, file size, latency."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from chestx_cli.core.printable import counted, paragraph
from chestx_cli.evaluation.results import BENCHMARKS, CPU, EVALUATIONS, VARIANTS, StudyResults, VariantResults
from chestx_cli.records.benchmark import EAGER
from chestx_cli.records.variant import BASELINE
from chestx_cli.reporting.figures.registry import figure
from chestx_cli.reporting.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALE,
    PURPLE,
    SKY,
    SMALL_PT,
    new_figure,
    panel_grid,
    separate_runs_note,
    share_of_one,
    shown,
    stale_note,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Results = tuple[VariantResults, ...]
# Draws one property of all variants, one per line y = 0, 1, ...; the last argument is the reference variant.
Panel = Callable[["Axes", Results, VariantResults | None], None]

# Offsets within a line: the text is above the mark.
TEXT_Y, MARK_Y, MARK_HEIGHT = -0.24, 0.18, 0.44
# Smallest share of zeros that is visible on its axis.
FEWEST_ZEROS = 0.001
MISSING, NOT_COMPARED = "not measured", "no current comparison"


@figure(
    "pruning-comparison",
    title="Pruned variants against the baseline",
    caption=(
        "Accuracy on the test images with its 95 % interval, share of zero parameters, file size and median "
        "CPU latency of the baseline (blue lines) and the pruned variants; p is from the exact paired test "
        "(Holm); discordant: images correct in the baseline only / in the variant only. Zeros alone change "
        "neither the dense file nor the latency."
    ),
    shows=(VARIANTS, EVALUATIONS, BENCHMARKS),
)
def pruning_comparison(study: StudyResults) -> Figure | None:
    """Draw the baseline and the pruned variants; None if none is pruned or none is evaluated."""
    everything, reference = study.variants, study.reference
    references = {BASELINE} | ({reference.name} if reference else set())
    results = tuple(result for result in everything if _is_pruned(result) or result.name in references)
    if not any(_is_pruned(result) for result in results) or all(result.row is None for result in results):
        return None
    panels = [
        _accuracy,
        *([_zeros] if any(_zero_share(result) >= FEWEST_ZEROS for result in results) else []),
        _file_size,
        *([_latency] if _timed(results) else []),
    ]
    lines, columns = panel_grid(len(panels), 3 if len(panels) == 3 else 2)
    fig = new_figure(
        1.0 + lines * (1.0 + 0.42 * len(results)),
        f"Pruning: {_images(results)}",
        note=_note(results),
    )
    grid = fig.subplots(lines, columns, sharey=True, squeeze=False)
    for axes, panel in zip(grid.ravel(), panels, strict=True):
        panel(axes, results, reference)
    for axes in grid[:, 0]:
        _name_lines(axes, results)
    return fig


def _timed(results: Results) -> bool:
    """Return whether any variant was timed on the CPU."""
    return any(result.fastest(CPU) for result in results)


def _zero_share(result: VariantResults) -> float:
    return 1 - result.record.nonzero_parameters / max(1, result.record.parameters)


def _is_pruned(result: VariantResults) -> bool:
    return result.record.pruning is not None or result.record.structure is not None


@figure(
    "comparison",
    title="All variants compared",
    caption=(
        "Accuracy of every variant on the test images with its 95 % interval (band and blue line: the "
        "baseline), file size, and median CPU latency under eager PyTorch and under its fastest runtime. "
        "Overlapping intervals are no evidence of a difference; p is from the exact paired test against the "
        "baseline (Holm); discordant: images correct in the baseline only / in the variant only."
    ),
    shows=(VARIANTS, EVALUATIONS, BENCHMARKS),
)
def comparison(study: StudyResults) -> Figure | None:
    """Draw all variants; None if none is evaluated, or if there is only one."""
    results = study.variants
    if len(results) < 2 or all(result.row is None for result in results):
        return None
    fig = new_figure(1.9 + 0.46 * len(results), f"Comparison: {_images(results)}", note=_note(results), width_in=10.0)
    panels, ratios = [_accuracy, _file_size], [1.15, 0.8]
    if _timed(results):
        panels.append(_latency)
        ratios.append(1.25)
    grid = fig.subplots(1, len(panels), sharey=True, width_ratios=ratios)
    for axes, panel in zip(grid, panels, strict=True):
        panel(axes, results, study.reference)
    _name_lines(grid[0], results)
    return fig


def _images(results: Results) -> str:
    evaluation = next(result.evaluation for result in results if result.evaluation is not None)
    return f"{counted(evaluation.images, 'test image')} of {counted(evaluation.patients, 'patient')}"


def _note(results: Results) -> str:
    """Return the caveats of the comparison: kind of interval, correction, stale variants, separate benchmark runs."""
    evaluation = next(result.evaluation for result in results if result.evaluation is not None)
    interval_note = "Wilson's 95 % intervals"
    if evaluation.patients < evaluation.images:
        interval_note = "95 % intervals on the effective number of images"
    n_tests = sum(1 for result in results if result.comparison)
    return paragraph(
        f"One image is {share_of_one(evaluation.images)} of accuracy; whiskers are {interval_note}.",
        f"The {n_tests} p values are corrected for their number (Holm)." if n_tests > 1 else "",
        stale_note([result.name for result in results if result.is_stale]),
        separate_runs_note(results),
    )


def _name_lines(axes: Axes, results: Results) -> None:
    axes.set_yticks(range(len(results)), [shown(result.name) for result in results])
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.tick_params(axis="y", labelleft=True)


def _prepare(axes: Axes, n_lines: int, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title)
    axes.grid(axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.tick_params(axis="y", length=0)
    for y in range(1, n_lines):
        axes.axhline(y - 0.5, color=PALE, linewidth=0.8, zorder=0.5)


def _write_text(axes: Axes, y: int, text: str, *, missing: bool = False) -> None:
    """Write the text of a line at the left edge, above its mark, so that no mark crosses it."""
    axes.text(
        0.015,
        y + TEXT_Y,
        text,
        transform=axes.get_yaxis_transform(),
        va="center",
        fontsize=SMALL_PT,
        color=GREY if missing else BLACK,
        fontstyle="italic" if missing else "normal",
        zorder=6,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.9, "pad": 0.6},
    )


def _marks(results: Results) -> list[float]:
    return [y + MARK_Y for y in range(len(results))]


def _draw_reference(axes: Axes, results: Results, value: float) -> None:
    """Mark the reference's value in every line, below the text so that it does not cross it."""
    low, high = ([y + side * MARK_HEIGHT / 2 for y in _marks(results)] for side in (-1, 1))
    axes.vlines([value] * len(results), low, high, color=BLUE, linewidth=1.2, zorder=2.5)


def _accuracy(axes: Axes, results: Results, reference: VariantResults | None) -> None:
    from matplotlib.ticker import MultipleLocator

    _prepare(axes, len(results), "Accuracy, 95 % interval")
    lowest = 0.5
    if reference is not None and reference.row is not None:
        low, high = reference.row.accuracy_interval
        axes.barh(_marks(results), high - low, left=low, height=MARK_HEIGHT, color=SKY, alpha=0.25, zorder=0)
        _draw_reference(axes, results, reference.row.accuracy)
    for y, result in enumerate(results):
        row, evaluation = result.row, result.evaluation
        if row is None or evaluation is None:
            _write_text(axes, y, "not evaluated", missing=True)
            continue
        low, high = row.accuracy_interval
        lowest = min(lowest, low)
        axes.plot([low, high], [y + MARK_Y] * 2, color=BLACK, linewidth=1.6, solid_capstyle="butt", zorder=3)
        axes.plot([low, high], [y + MARK_Y] * 2, color=BLACK, marker="|", markersize=7, linestyle="none", zorder=3)
        axes.plot(
            [row.accuracy], [y + MARK_Y], color=BLUE, marker="o", markersize=6.5, markeredgecolor="white", zorder=4
        )
        text = f"{row.accuracy:.1%} ({row.correct:,}/{evaluation.images:,})"
        if reference is not None and result is not reference:
            paired = result.compared_with(reference)
            test = f"discordant {paired.lost:,} / {paired.won:,}, p = {paired.holm_p:.2g}" if paired else NOT_COMPARED
            text += f"; {test}; STALE" if result.is_stale else f"; {test}"
        _write_text(axes, y, text)
    # From at least 50 % to 100 %: on a shorter axis a single image would look like a difference.
    axes.set_xlim(max(0.0, lowest - 0.02) if lowest < 0.5 else 0.5, 1.02)
    axes.xaxis.set_major_locator(MultipleLocator(0.1 if lowest >= 0.5 else 0.2))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _zeros(axes: Axes, results: Results, reference: VariantResults | None) -> None:  # noqa: ARG001 - part of `Panel`
    shares = [_zero_share(result) for result in results]
    _bars(axes, shares, [f"{share:.1%}" for share in shares], "Zeros, share of all parameters", PURPLE)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _file_size(axes: Axes, results: Results, reference: VariantResults | None) -> None:
    sizes_mb = [result.record.model_bytes / 1e6 for result in results]
    texts = [f"{size:.1f} MB" if size >= 1 else f"{size:.3f} MB" for size in sizes_mb]
    _bars(axes, sizes_mb, texts, "Model file, MB", GREEN)
    if reference is not None:
        _draw_reference(axes, results, reference.record.model_bytes / 1e6)
    axes.set_xlim(0, max(sizes_mb) * 1.08)


def _bars(axes: Axes, values: list[float], texts: list[str], title: str, colour: str) -> None:
    _prepare(axes, len(values), title)
    for y, (value, text) in enumerate(zip(values, texts, strict=True)):
        axes.barh(y + MARK_Y, value, height=0.3, color=colour, zorder=2)
        _write_text(axes, y, text)


def _latency(axes: Axes, results: Results, reference: VariantResults | None) -> None:
    benchmarks = [benchmark for result in results if (benchmark := result.benchmark_on(CPU))]
    threads = sorted({benchmark.threads for benchmark in benchmarks})
    batches = sorted({benchmark.latency_batch for benchmark in benchmarks})
    _prepare(axes, len(results), "CPU latency p50, ms")
    highest = 0.0
    for y, result in enumerate(results):
        eager, fastest = result.speed(CPU, EAGER), result.fastest(CPU)
        if fastest is None:
            _write_text(axes, y, MISSING, missing=True)
            continue
        parts = [f"{fastest.latency_p50_ms:.1f} {shown(fastest.runtime, 14)}"]
        highest = max(highest, fastest.latency_p50_ms)
        if eager is not None and eager is not fastest:
            highest = max(highest, eager.latency_p50_ms)
            parts.append(f"{eager.latency_p50_ms:.1f} eager")
            pair = [fastest.latency_p50_ms, eager.latency_p50_ms]
            axes.plot(pair, [y + MARK_Y] * 2, color=GREY, linewidth=1.2, zorder=2)
            axes.plot(pair[1:], [y + MARK_Y], marker="o", markersize=7, markerfacecolor="white", color=ORANGE, zorder=3)
        axes.plot([fastest.latency_p50_ms], [y + MARK_Y], marker="o", markersize=7, color=ORANGE, zorder=4)
        _write_text(axes, y, " · ".join(parts))
    best = reference.fastest(CPU) if reference else None
    if best is not None:
        _draw_reference(axes, results, best.latency_p50_ms)
    axes.set_xlim(0, highest * 1.1)
    terms = f"batch {_listed(batches)}, threads: {_listed(threads)}"
    axes.set_xlabel(f"● fastest runtime, ○ eager PyTorch\n{terms}", fontsize=SMALL_PT)


def _listed(numbers: list[int]) -> str:
    return "/".join(str(number) for number in numbers)
