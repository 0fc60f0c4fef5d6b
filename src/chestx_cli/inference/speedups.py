"""Results of timed rounds: rows with speed-ups and intervals, warnings, and a sentence per variant."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from chestx_cli.evaluation.statistics.intervals import LEAST_RATIOS, mean_ratio_interval
from chestx_cli.inference.file_sizes import file_sizes
from chestx_cli.inference.timing import BUSY, MOST_SPREAD, is_busy, spread_of, waited_share_of
from chestx_cli.records.answers import INFERIOR
from chestx_cli.records.benchmark import EAGER, BatchRow, BenchmarkRecord, BenchmarkRow, CostRow
from chestx_cli.records.variant import BASELINE

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from chestx_cli.inference.file_sizes import FileSizes
    from chestx_cli.inference.timing import Round
    from chestx_cli.records.evaluation import ComparisonRow
    from chestx_cli.records.variant import VariantRecord
    from chestx_cli.store.directory import Study

    # Rounds by variant and runtime.
    Timed = Mapping[tuple[str, str], list[Round]]

# Latency ratios within this distance of 1 count as neither a gain nor a loss.
LATENCY_TOLERANCE = 0.05
# A variant whose rounds scatter counts as as fast as another only if its median ratio is within this distance of 1.
SCATTER_TOLERANCE = 0.1
# Sizes that differ by less than this share are equal.
SIZE_TOLERANCE = 0.005
FASTER, NOT_FASTER, SLOWER = "faster", "not faster", "slower"
# The ratio has no interval, or its interval includes 1 although the ratio is beyond the tolerance.
UNDECIDED = "not enough rounds to say"
NOISY = "NOISY"
TOO_NOISY = f"too {NOISY} to say"

_RUNTIME_NAMES = {EAGER: "eager PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def runtime_name(runtime: str) -> str:
    """Return a runtime's name for use in sentences."""
    return _RUNTIME_NAMES.get(runtime, runtime)


def milliseconds(value: float) -> str:
    """Return a latency in ms as text."""
    return f"{value:.{1 if value >= 10 else 2}f} ms"


def best_runtime(timed: Timed, variant: str, batch: int) -> str:
    """Return the runtime with a variant's lowest median latency."""
    return min((key for key in timed if key[0] == variant), key=lambda key: _median_s(timed[key], batch))[1]


def speed_row(key: tuple[str, str], timed: Timed, baseline: str, best: str, model_sha256: str) -> BenchmarkRow:
    """Return the row of a variant under a runtime; `best`: the FP32 baseline's best runtime."""
    rounds = timed[key]
    batches = tuple(_batch_row(rounds, batch) for batch in sorted(rounds[0].seconds))
    eager = timed.get((baseline, EAGER))
    over_eager, over_eager_interval = (None, None) if eager is None else speedup_of(eager, rounds)
    over_best, over_best_interval = speedup_of(timed[baseline, best], rounds)
    first = batches[0]
    return BenchmarkRow(
        variant=key[0],
        runtime=key[1],
        latency_p50_ms=first.p50_ms,
        latency_p90_ms=first.p90_ms,
        latency_p99_ms=first.p99_ms,
        images_per_s=tuple(row.images_per_s for row in batches),
        speedup_over_eager=over_eager,
        speedup_over_eager_interval=over_eager_interval,
        speedup_over_best_fp32=over_best,
        speedup_over_best_fp32_interval=over_best_interval,
        batches=batches,
        model_sha256=model_sha256,
        waited_share=waited_share_of(rounds),
    )


def variant_sizes(study: Study, record: VariantRecord) -> FileSizes:
    """Return the sizes of a variant's file; takes seconds for a large file that is not cached."""
    return file_sizes(study.variant(record.name) / record.model_file, record.model_sha256, study.cache)


def cost_row(
    record: VariantRecord, sizes: FileSizes, runtime: str, rounds: Sequence[Round], bundle_bytes: int | None
) -> CostRow:
    """Return a variant's sizes and its memory under a runtime; memory is None without rounds."""
    # Each round is a separate process; the median is robust against a process that the system treated differently.
    peaks = [timing.peak_bytes for timing in rounds if timing.peak_bytes is not None]
    added = [
        timing.peak_bytes - timing.runtime_bytes
        for timing in rounds
        if timing.peak_bytes is not None and timing.runtime_bytes is not None
    ]
    return CostRow(
        variant=record.name,
        runtime=runtime,
        peak_memory_mb=statistics.median(peaks) / 1e6 if peaks else None,
        added_memory_mb=statistics.median(added) / 1e6 if added else None,
        size_mb=sizes.dense_bytes / 1e6,
        gzip_mb=sizes.gzip_bytes / 1e6,
        sparse_mb=sizes.sparse_bytes / 1e6,
        bundle_mb=None if bundle_bytes is None else bundle_bytes / 1e6,
        parameters=record.parameters,
        nonzero_parameters=record.nonzero_parameters,
        gmacs=record.macs / 1e9,
        macs=record.macs,
        model_bytes=sizes.dense_bytes,
        gzip_bytes=sizes.gzip_bytes,
        sparse_bytes=sizes.sparse_bytes,
        model_sha256=record.model_sha256,
    )


def _batch_row(rounds: list[Round], batch: int) -> BatchRow:
    import numpy as np

    calls_ms = np.concatenate([timing.seconds[batch] for timing in rounds]) * 1000
    p50, p90, p99 = (float(value) for value in np.percentile(calls_ms, [50, 90, 99]))
    return BatchRow(
        batch_size=batch,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        images_per_s=1000 * batch / p50,
        calls=len(calls_ms),
        round_p50_ms=tuple(1000 * statistics.median(timing.seconds[batch]) for timing in rounds),
    )


def _median_s(rounds: list[Round], batch: int) -> float:
    return statistics.median(seconds for timing in rounds for seconds in timing.seconds[batch])


def speedup_of(reference: list[Round], variant: list[Round]) -> tuple[float, tuple[float, float] | None]:
    """Return the speed-up of a call with the smallest batch, and its 95 % interval.

    The speed-up is the median over rounds of the ratio of median latencies. Rounds are the unit of the interval, since
    calls of a round share their process and the machine's load.
    """
    batch = min(variant[0].seconds)
    ratios = [
        statistics.median(a.seconds[batch]) / statistics.median(b.seconds[batch])
        for a, b in zip(reference, variant, strict=True)
    ]
    return statistics.median(ratios), None if reference is variant else mean_ratio_interval(ratios)


def noise(timed: Timed) -> tuple[str, ...]:
    """Return warnings about times of a busy machine, of a single round, and of a smaller batch that took longer."""
    sizes = sorted(next(iter(timed.values()))[0].seconds)
    first, last = sizes[0], sizes[-1]
    worst = max(timed, key=lambda key: spread_of(timed[key]))
    spread = spread_of(timed[worst])
    waited = {key: waited_share_of(rounds) or 0.0 for key, rounds in timed.items()}
    slowed = max(waited, key=lambda key: waited[key])
    facts = []
    if spread > MOST_SPREAD:
        facts.append(f"the rounds of {worst[0]} under {worst[1]} differ by a factor of {spread:.1f}")
    if is_busy(waited[slowed]):
        facts.append(f"{slowed[0]} under {slowed[1]} waited {waited[slowed]:.0%} of its time for a processor")
    sentences = []
    if facts:
        sentences.append(
            f"{NOISY}: {', and '.join(facts)}. {BUSY[0].upper()}{BUSY[1:]}: do not quote these times; try again on "
            "an idle machine, or with --threads."
        )
    if any(len(rounds) == 1 for rounds in timed.values()):
        sentences.append(
            "One round only: the scatter of these times is unknown. Use more --rounds before quoting them."
        )
    slow = [
        f"{name} under {runtime}"
        for (name, runtime), rounds in timed.items()
        if _median_s(rounds, first) > _median_s(rounds, last)
    ]
    if slow:
        sentences.append(
            f"{NOISY}: a batch of {first} took longer than one of {last} ({', '.join(slow)}): do not quote these times."
        )
    return tuple(sentences)


def speed_word(speedup: float, interval: tuple[float, float] | None) -> str:
    """Return the conclusion that a speed-up and its 95 % interval support; undecided without an interval."""
    if interval is None:
        return UNDECIDED
    if abs(1 / speedup - 1) <= LATENCY_TOLERANCE:
        return NOT_FASTER
    if interval[0] <= 1 <= interval[1]:
        return UNDECIDED
    return FASTER if speedup > 1 else SLOWER


def word_of(benchmark: BenchmarkRecord, variant: str) -> str | None:
    """Return whether a variant is faster, not faster or slower than FP32, each under its best runtime, or undecided.

    None if the variant was not timed in the same run as the baseline, and for the baseline itself.
    """
    row = benchmark.fastest(variant)
    if row is None or row.speedup_over_best_fp32 is None or variant == benchmark.baseline:
        return None
    return speed_word(row.speedup_over_best_fp32, row.speedup_over_best_fp32_interval)


def word_between(reference: BenchmarkRecord, benchmark: BenchmarkRecord) -> str | None:
    """Return whether a variant is faster, not faster or slower than another, each under its best runtime, or undecided.

    Both records have the rows of one variant. None if they were not timed in the same run.
    """
    rows = [min(one.rows, key=lambda row: row.latency_p50_ms, default=None) for one in (reference, benchmark)]
    if reference.stamp != benchmark.stamp or rows[0] is None or rows[1] is None:
        return None
    return speed_word(*_ratio_of_rounds(rows[0], rows[1]))


def preferred(rows: Sequence[BenchmarkRow], size_bytes: Mapping[str, int]) -> BenchmarkRow:
    """Return the row with the largest speed-up, or that of a smaller variant which is as fast, as far as the run shows.

    rows: of one run, one of each variant, each faster than FP32. size_bytes: by variant.
    """
    fastest, *others = sorted(rows, key=lambda row: row.speedup_over_best_fp32 or 0.0, reverse=True)
    best = fastest
    for row in others:
        ratio, interval = _ratio_of_rounds(fastest, row)
        is_as_fast = ratio >= 1 - SCATTER_TOLERANCE and speed_word(ratio, interval) != SLOWER
        if is_as_fast and size_bytes[row.variant] < (1 - SIZE_TOLERANCE) * size_bytes[best.variant]:
            best = row
    return best


def _ratio_of_rounds(reference: BenchmarkRow, row: BenchmarkRow) -> tuple[float, tuple[float, float] | None]:
    """Return how many times as fast a row is as another of the same run, from each round's medians."""
    medians = zip(reference.batches[0].round_p50_ms, row.batches[0].round_p50_ms, strict=True)
    ratios = [first_ms / second_ms for first_ms, second_ms in medians]
    return statistics.median(ratios), mean_ratio_interval(ratios)


def speed_sentence(benchmark: BenchmarkRecord, variant: str) -> str:
    """Return a sentence on whether a variant is faster than the FP32 baseline, each under its best runtime.

    It includes the ratio's interval. Empty for the baseline itself, and if not timed in the same run as the baseline.
    """
    row, word = benchmark.fastest(variant), word_of(benchmark, variant)
    if row is None or word is None or row.speedup_over_best_fp32 is None or benchmark.best_fp32_runtime is None:
        return ""
    ratio, interval = row.speedup_over_best_fp32, row.speedup_over_best_fp32_interval
    runtime, best = runtime_name(row.runtime), runtime_name(benchmark.best_fp32_runtime)
    where = (
        f"both under {runtime}, the best for each"
        if runtime == best
        else f"{runtime} against {best}, the best for each"
    )
    compared = f"than {_reference(benchmark)} on {benchmark.device} ({where})"
    if is_noisy(benchmark):
        word = TOO_NOISY
    is_open = word in (UNDECIDED, TOO_NOISY)
    comparison = f"{word} whether it is faster {compared}" if is_open else f"is {word} {compared}"
    measured = f"{milliseconds(row.latency_p50_ms)}, {_times(ratio, interval)}"
    if word == UNDECIDED and interval is not None:
        measured += "; the ratio varies across 1 from round to round"
    return f"{variant}{':' if is_open else ''} {comparison}: {measured}."


def is_noisy(benchmark: BenchmarkRecord) -> bool:
    """Return whether the times are too noisy to quote them or base a recommendation on them."""
    return any(text.startswith(NOISY) for text in benchmark.warnings)


def of_rounds(ratio: float, first_ms: float, second_ms: float) -> str:
    """Return why a ratio differs from that of the two latencies shown with it; empty if they nearly agree."""
    shown = first_ms / second_ms
    if abs(shown / ratio - 1) <= LATENCY_TOLERANCE:
        return ""
    return f" (the median of the rounds' ratios; the medians of all calls give {shown:.2f}, since the rounds differ)"


def _times(ratio: float, interval: tuple[float, float] | None) -> str:
    """Return a ratio with its interval as text: as a speed, or as a latency for a slower variant."""
    slower = 1 / ratio - 1 > LATENCY_TOLERANCE
    if slower:
        ratio, interval = 1 / ratio, interval and (1 / interval[1], 1 / interval[0])
    bounds = f"95 % {interval[0]:.2f}–{interval[1]:.2f}" if interval else f"an interval needs {LEAST_RATIOS} rounds"
    return f"{ratio:.2f} times the latency ({bounds})" if slower else f"{ratio:.2f} times as fast ({bounds})"


def _may_be_faster(benchmark: BenchmarkRecord, variant: str) -> bool:
    """Return whether an undecided variant was measured as faster, or in too few rounds for an interval."""
    row = benchmark.fastest(variant)
    if row is None or row.speedup_over_best_fp32 is None:
        return False
    return row.speedup_over_best_fp32_interval is None or row.speedup_over_best_fp32 > 1


def _reference(benchmark: BenchmarkRecord) -> str:
    return "the FP32 baseline" if benchmark.baseline == BASELINE else f"{benchmark.baseline} in FP32"


def recommendation(
    parts: Sequence[BenchmarkRecord], int8: Collection[str], verdicts: Mapping[str, ComparisonRow]
) -> tuple[str, ...]:
    """Return recommendations for speed on a device.

    parts: of one device, each variant in one of them. Speed-ups over FP32 are ratios within a run, so that parts of
    several runs can be compared; which of two variants is preferred is asked only of one run. int8: names of the INT8
    variants. verdicts: on the test images, by variant. Of the variants that are faster than the FP32 baseline and not
    inferior, that of `preferred` is recommended; otherwise the baseline, unless the rounds are too few or too noisy, or
    suggest that another variant is faster. Inferior faster variants and slower INT8 files are named. Empty if nothing
    was timed in the same run as the baseline.
    """
    benchmark = parts[0].replace(
        rows=tuple(row for part in parts for row in part.rows),
        cost_rows=tuple(row for part in parts for row in part.cost_rows),
        warnings=tuple(dict.fromkeys(sentence for part in parts for sentence in part.warnings)),
    )
    run_of = {row.variant: part.stamp for part in parts for row in part.rows}
    words = {name: word_of(benchmark, name) for name in dict.fromkeys(row.variant for row in benchmark.rows)}
    if benchmark.best_fp32_runtime is None or not any(words.values()):
        return ()
    if is_noisy(benchmark):
        return (f"No recommendation for speed on {benchmark.device}: the times are {NOISY}.",)
    faster = [row for name, word in words.items() if word == FASTER and (row := benchmark.fastest(name))]
    inferior = {name: row.short for name, row in verdicts.items() if row.word == INFERIOR}
    better = [row for row in faster if row.variant not in inferior]
    if better:
        fastest = max(better, key=lambda row: row.speedup_over_best_fp32 or 0.0)
        of_its_run = [row for row in better if run_of[row.variant] == run_of[fastest.variant]]
        row = preferred(of_its_run, {row.variant: row.model_bytes for row in benchmark.cost_rows})
        verdict = verdicts.get(row.variant)
        quality = (
            f"On the test images it is {verdict.short}."
            if verdict
            else f'It is not compared on the test images: run "chestx evaluate {row.variant}".'
        )
        sentences = [
            f"Recommended for speed on {benchmark.device}: {row.variant} under {runtime_name(row.runtime)}. {quality}"
        ]
    elif open_ones := [name for name, word in words.items() if word == UNDECIDED and _may_be_faster(benchmark, name)]:
        sentences = [
            f"No recommendation for speed on {benchmark.device}: {UNDECIDED} for {', '.join(open_ones)}. Use more "
            "--rounds."
        ]
    else:
        none = "no faster variant is as good" if faster else "no variant is shown to be faster"
        sentences = [
            f"Recommended for speed on {benchmark.device}: {_reference(benchmark)} itself, under "
            f"{runtime_name(benchmark.best_fp32_runtime)}; {none}."
        ]
    sentences += [
        f"{row.variant} is faster, but {inferior[row.variant]}: it is not recommended."
        for row in faster
        if row.variant in inferior
    ]
    slower = [name for name, word in words.items() if word == SLOWER and name in int8]
    sentences += [f"{name} is an INT8 file that is slower than FP32 here: it is not recommended." for name in slower]
    return tuple(sentences)
