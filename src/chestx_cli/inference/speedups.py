"""Results of timed rounds: rows with ratios and their intervals, warnings, and a sentence per variant."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from chestx_cli.evaluation.statistics.intervals import LEAST_RATIOS, mean_ratio_interval
from chestx_cli.evaluation.verdicts import INFERIOR
from chestx_cli.inference.file_sizes import file_sizes
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

# Ratios of latency within this share of 1 are not called a gain or a loss.
LATENCY_TOLERANCE = 0.05
FASTER, NOT_FASTER, SLOWER = "faster", "not faster", "slower"
# The ratio has no interval, or one on both sides of 1 although it is beyond the tolerance itself.
UNDECIDED = "not enough rounds to say"
# Rounds of one model that differ by more than this were not measured on a quiet machine.
NOISY_SPREAD = 1.5
NOISY = "NOISY"

_RUNTIME_NAMES = {EAGER: "eager PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def runtime_name(runtime: str) -> str:
    """Return a runtime's name as it is written in a sentence."""
    return _RUNTIME_NAMES.get(runtime, runtime)


def milliseconds(value: float) -> str:
    """Return a latency as it is written in a sentence."""
    return f"{value:.{1 if value >= 10 else 2}f} ms"


def best_runtime(timed: Timed, variant: str, batch: int) -> str:
    """Return the runtime under which a variant's median latency is lowest."""
    return min((key for key in timed if key[0] == variant), key=lambda key: _median_s(timed[key], batch))[1]


def speed_row(key: tuple[str, str], timed: Timed, baseline: str, best: str, model_sha256: str) -> BenchmarkRow:
    """Return the row of one variant under one runtime; `best` is the FP32 baseline's best runtime."""
    rounds = timed[key]
    batches = tuple(_batch_row(rounds, batch) for batch in sorted(rounds[0].seconds))
    eager = timed.get((baseline, EAGER))
    over_eager, over_eager_interval = (None, None) if eager is None else _speedup(eager, rounds)
    over_best, over_best_interval = _speedup(timed[baseline, best], rounds)
    first = batches[0]
    return BenchmarkRow(
        variant=key[0],
        runtime=key[1],
        latency_p50_ms=first.p50_ms,
        latency_p90_ms=first.p90_ms,
        latency_p99_ms=first.p99_ms,
        images_per_s=tuple(one.images_per_s for one in batches),
        speedup_over_eager=over_eager,
        speedup_over_eager_interval=over_eager_interval,
        speedup_over_best_fp32=over_best,
        speedup_over_best_fp32_interval=over_best_interval,
        batches=batches,
        model_sha256=model_sha256,
    )


def variant_sizes(study: Study, record: VariantRecord) -> FileSizes:
    """Return what a variant's file takes; seconds for a large one that was not measured before."""
    return file_sizes(study.variant(record.name) / record.model_file, record.model_sha256, study.cache)


def cost_row(record: VariantRecord, sizes: FileSizes, runtime: str, rounds: Sequence[Round]) -> CostRow:
    """Return what a variant takes under one runtime; its memory is None without rounds."""
    # In every round its own process: the median is not that of one which the system treated differently.
    peaks = [one.peak_bytes for one in rounds if one.peak_bytes is not None]
    added = [
        one.peak_bytes - one.runtime_bytes
        for one in rounds
        if one.peak_bytes is not None and one.runtime_bytes is not None
    ]
    return CostRow(
        variant=record.name,
        runtime=runtime,
        peak_memory_mb=statistics.median(peaks) / 1e6 if peaks else None,
        added_memory_mb=statistics.median(added) / 1e6 if added else None,
        size_mb=sizes.dense_bytes / 1e6,
        gzip_mb=sizes.gzip_bytes / 1e6,
        sparse_mb=sizes.sparse_bytes / 1e6,
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

    calls_ms = np.concatenate([one.seconds[batch] for one in rounds]) * 1000
    p50, p90, p99 = (float(value) for value in np.percentile(calls_ms, [50, 90, 99]))
    return BatchRow(
        batch_size=batch,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        images_per_s=1000 * batch / p50,
        calls=len(calls_ms),
        round_p50_ms=tuple(1000 * statistics.median(one.seconds[batch]) for one in rounds),
    )


def _median_s(rounds: list[Round], batch: int) -> float:
    return statistics.median(seconds for one in rounds for seconds in one.seconds[batch])


def _speedup(reference: list[Round], own: list[Round]) -> tuple[float, tuple[float, float] | None]:
    """Return how many times faster a call with the smallest batch is, and its 95 % interval.

    It is the median over rounds of the ratio of the round's medians; rounds are the unit of the interval, since the
    calls of one round share their process and what the machine was busy with.
    """
    batch = min(own[0].seconds)
    ratios = [
        statistics.median(a.seconds[batch]) / statistics.median(b.seconds[batch])
        for a, b in zip(reference, own, strict=True)
    ]
    return statistics.median(ratios), None if reference is own else mean_ratio_interval(ratios)


def noise(timed: Timed) -> tuple[str, ...]:
    """Return a warning where the rounds of one and the same model differ much, or where there is only one."""
    sizes = sorted(next(iter(timed.values()))[0].seconds)
    first, last = sizes[0], sizes[-1]
    medians = {key: [statistics.median(one.seconds[first]) for one in rounds] for key, rounds in timed.items()}
    worst = max(medians, key=lambda key: max(medians[key]) / min(medians[key]))
    spread = max(medians[worst]) / min(medians[worst])
    sentences = []
    if spread > NOISY_SPREAD:
        sentences.append(
            f"{NOISY}: the rounds of {worst[0]} under {worst[1]} differ by a factor of {spread:.1f}. The machine "
            "was busy, or its threads competed: do not quote these times; try again on an idle machine, or with "
            "--threads."
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
    """Return what a ratio of latencies and its 95 % interval support; without an interval that is nothing."""
    if interval is None:
        return UNDECIDED
    if abs(1 / speedup - 1) <= LATENCY_TOLERANCE:
        return NOT_FASTER
    if interval[0] <= 1 <= interval[1]:
        return UNDECIDED
    return FASTER if speedup > 1 else SLOWER


def word_of(benchmark: BenchmarkRecord, variant: str) -> str | None:
    """Return what the rounds support: faster, not faster or slower than FP32, each under its best runtime, or nothing.

    None where the variant was not timed in one run with the baseline, and for the baseline itself.
    """
    row = benchmark.fastest(variant)
    if row is None or row.speedup_over_best_fp32 is None or variant == benchmark.baseline:
        return None
    return speed_word(row.speedup_over_best_fp32, row.speedup_over_best_fp32_interval)


def speed_sentence(benchmark: BenchmarkRecord, variant: str) -> str:
    """Return in words whether a variant is faster than the FP32 baseline, each under its best runtime.

    With the ratio's interval. Empty for the baseline itself, and where it was not timed in the same run.
    """
    row, word = benchmark.fastest(variant), word_of(benchmark, variant)
    if row is None or word is None or row.speedup_over_best_fp32 is None or benchmark.best_fp32_runtime is None:
        return ""
    ratio, interval = row.speedup_over_best_fp32, row.speedup_over_best_fp32_interval
    own, best = runtime_name(row.runtime), runtime_name(benchmark.best_fp32_runtime)
    where = f"both under {own}, the best for each" if own == best else f"{own} against {best}, the best for each"
    compared = f"than {_reference(benchmark)} on {benchmark.device} ({where})"
    comparison = f"{word} whether it is faster {compared}" if word == UNDECIDED else f"is {word} {compared}"
    measured = f"{milliseconds(row.latency_p50_ms)}, {_times(ratio, interval)}"
    if word == UNDECIDED and interval is not None:
        measured += "; from round to round the ratio scatters over 1"
    if is_noisy(benchmark):
        measured += f"; {NOISY}"
    return f"{variant}{':' if word == UNDECIDED else ''} {comparison}: {measured}."


def is_noisy(benchmark: BenchmarkRecord) -> bool:
    """Return whether the rounds differ too much for their times to be quoted or recommended on."""
    return any(text.startswith(NOISY) for text in benchmark.warnings)


def of_rounds(ratio: float, first_ms: float, second_ms: float) -> str:
    """Return why a ratio differs from that of the two latencies shown with it; empty where it nearly equals it."""
    shown = first_ms / second_ms
    if abs(shown / ratio - 1) <= LATENCY_TOLERANCE:
        return ""
    return f" (the median of the rounds' ratios; the medians of all calls give {shown:.2f}, since the rounds differ)"


def _times(ratio: float, interval: tuple[float, float] | None) -> str:
    """Return a ratio in words with its interval: as a speed, or of what is slower as a latency."""
    slower = 1 / ratio - 1 > LATENCY_TOLERANCE
    if slower:
        ratio, interval = 1 / ratio, interval and (1 / interval[1], 1 / interval[0])
    bounds = f"95 % {interval[0]:.2f}–{interval[1]:.2f}" if interval else f"an interval needs {LEAST_RATIOS} rounds"
    return f"{ratio:.2f} times the latency ({bounds})" if slower else f"{ratio:.2f} times as fast ({bounds})"


def _may_be_faster(benchmark: BenchmarkRecord, variant: str) -> bool:
    """Return whether an undecided variant was measured as faster, or in too few rounds to have a direction."""
    row = benchmark.fastest(variant)
    if row is None or row.speedup_over_best_fp32 is None:
        return False
    return row.speedup_over_best_fp32_interval is None or row.speedup_over_best_fp32 > 1


def _reference(benchmark: BenchmarkRecord) -> str:
    return "the FP32 baseline" if benchmark.baseline == BASELINE else f"{benchmark.baseline} in FP32"


def recommendation(
    benchmark: BenchmarkRecord, int8: Collection[str], verdicts: Mapping[str, ComparisonRow]
) -> tuple[str, ...]:
    """Return what to use for speed on this device; `int8` names the INT8 variants, `verdicts` are of the test images.

    Only what is faster than the FP32 baseline and not inferior to it is recommended, the largest ratio of it; else the
    baseline, unless the rounds are too few or too noisy to say so or point the other way. Faster variants that are
    inferior and INT8 files that are slower are named. Empty where nothing was timed in one run with the baseline.
    """
    words = {name: word_of(benchmark, name) for name in dict.fromkeys(row.variant for row in benchmark.rows)}
    if benchmark.best_fp32_runtime is None or not any(words.values()):
        return ()
    if is_noisy(benchmark):
        return (f"No recommendation for speed on {benchmark.device}: the times are {NOISY}.",)
    faster = [row for name, word in words.items() if word == FASTER and (row := benchmark.fastest(name))]
    inferior = {name: row.short for name, row in verdicts.items() if row.word == INFERIOR}
    better = [row for row in faster if row.variant not in inferior]
    if better:
        row = max(better, key=lambda row: row.speedup_over_best_fp32 or 0.0)
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
