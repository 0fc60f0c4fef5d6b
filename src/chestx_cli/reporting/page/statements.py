"""What a study supports, in words made from its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.evaluation.results import StudyResults, VariantResults
from chestx_cli.evaluation.verdicts import BETTER, INCONCLUSIVE
from chestx_cli.inference.speedups import (
    FASTER,
    NOISY,
    is_noisy,
    milliseconds,
    of_rounds,
    recommendation,
    runtime_name,
    speed_sentence,
    speed_word,
)
from chestx_cli.records.benchmark import EAGER
from chestx_cli.records.variant import BASELINE
from chestx_cli.reporting.page.blocks import percent, rate

if TYPE_CHECKING:
    from chestx_cli.records.evaluation import EvaluationRow

SIZE_TOLERANCE = 0.005


def summarise(results: StudyResults) -> tuple[str, ...]:
    """Return what the numbers support, in words; without a benchmark nothing is said on speed."""
    n, _ = results.test_size()
    point = 100 / n
    said = [f"With {n} test images, one image is {point:.{1 if point >= 0.1 else 3}f} points of accuracy."]
    said.extend(results.caveats)
    baseline = results.baseline
    if baseline and baseline.row:
        said.append(_baseline_statement(results, baseline.row, n))
    others = [found for found in results.variants if found.name != BASELINE]
    said += [text for found in others for text in _accuracy_statements(results, found)]
    compared = [found.comparison for found in others if found.comparison]
    if compared and all(row.word == INCONCLUSIVE for row in compared):
        nothing = "No variant is" if len(compared) > 1 else "The only variant compared is not"
        said.append(
            f"{nothing} shown to differ from the baseline, or to be as good: absence of a difference is no evidence of "
            "equality."
        )
    if not any(found.row for found in results.variants):
        said.append('There are no test results yet: run "chestx evaluate".')
    said.extend(dict.fromkeys(text for found in results.variants for b in found.benchmarks for text in b.warnings))
    said += [text for found in others if (text := _cost_statement(results, found))]
    return (*said, *_recommendations(results), *_runtime_statements(results))


def _baseline_statement(results: StudyResults, row: EvaluationRow, n: int) -> str:
    low, high = row.accuracy_interval
    return (
        f"The baseline is right on {row.correct} of {n} test images: {percent(row.accuracy)}, 95 % interval "
        f"{100 * low:.1f}–{100 * high:.1f} %. It {_mistakes(results, row)}."
    )


def _mistakes(results: StudyResults, row: EvaluationRow) -> str:
    """Return both kinds of mistakes: a model that calls everything positive misses nothing."""
    name = results.split_record.positive
    positives, negatives = row.true_positives + row.false_negatives, row.true_negatives + row.false_positives
    if row.false_positives == negatives or row.false_negatives == positives:
        return f"calls {'every' if row.false_positives == negatives else 'no'} image {name}: it tells nothing"
    return (
        f"misses {row.false_negatives} of {positives} {name} images and calls {row.false_positives} of {negatives} "
        f"others {name}"
    )


def _accuracy_statements(results: StudyResults, found: VariantResults) -> list[str]:
    evaluation, row = found.evaluation, found.row
    if evaluation is None or row is None:
        return []
    comparison, n, who = evaluation.comparison, evaluation.images, evaluation.reference
    if comparison is None:
        right = f"{found.name} is right on {row.correct} of {n} test images ({percent(row.accuracy)})"
        return [f"{right}; it is not compared with the present baseline."]
    said = [f"{found.name} ({percent(row.accuracy)}) is {comparison.verdict}."]
    reference = results.variant(evaluation.baseline)
    if reference and reference.row and row.false_negatives > reference.row.false_negatives:
        said.append(f"{found.name} {_mistakes(results, row)}; {who} {_mistakes(results, reference.row)}.")
    if comparison.word == BETTER and found.record.training and found.record.parent:
        said.append(
            f"{found.name} was trained for {len(found.record.training.epochs)} epochs more than its parent: that "
            "alone may be what made it better."
        )
    return said


def _cost_statement(results: StudyResults, found: VariantResults) -> str:
    """Return what a variant's file and latency are against the FP32 baseline's."""
    size, same_size = _size(results, found)
    zeros = found.record.pruning.achieved_sparsity if found.record.pruning else 0
    said = []
    if zeros and same_size:
        said.append(f"{found.name} has {percent(zeros)} zeros, and the same file size.")
    elif size:
        said.append(f"{found.name} is {size}.")
    said += [text for benchmark in found.benchmarks if (text := speed_sentence(benchmark, found.name))]
    return " ".join(said)


def _recommendations(results: StudyResults) -> list[str]:
    """Return what to use for speed on each device; ratios are of each variant's own run, so that runs can be joined."""
    int8 = {found.name for found in results.variants if found.record.quantization}
    said: list[str] = []
    for device in results.devices:
        parts = [b for found in results.variants for b in found.benchmarks if b.device == device and b.baseline]
        if parts:
            joined = parts[0].replace(rows=tuple(row for part in parts for row in part.rows))
            said += recommendation(joined, int8, results.comparisons)
    return said


def _size(results: StudyResults, found: VariantResults) -> tuple[str, bool]:
    """Return how a variant's file compares with the baseline's in the same format, and whether it is as large."""
    if results.baseline is None:
        return "", False
    record, baseline = found.record, results.baseline.record
    reference, what = baseline.model_bytes, "the baseline"
    if record.quantization and record.parent_sha256 == baseline.model_sha256:
        # Another container is no compression: ONNX is compared with ONNX.
        reference, what = record.quantization.parent_bytes, "the baseline as FP32 ONNX"
    saved = 1 - rate(record.model_bytes, reference)
    if abs(saved) < SIZE_TOLERANCE:
        return f"no smaller than {what}", True
    return f"{percent(abs(saved))} {'smaller' if saved > 0 else 'larger'} than {what}", False


def _runtime_statements(results: StudyResults) -> list[str]:
    """Return what the runtime alone gains, so that nobody takes it for a gain of compression."""
    said = []
    for benchmark in results.baseline.benchmarks if results.baseline else ():
        best = results.same_run_speed(benchmark, benchmark.best_fp32_runtime) if benchmark.best_fp32_runtime else None
        eager = results.same_run_speed(benchmark, EAGER)
        if not (best and eager and best.speedup_over_eager):
            continue
        if speed_word(best.speedup_over_eager, best.speedup_over_eager_interval) == FASTER:
            said.append(
                f"The runtime alone makes the FP32 baseline {best.speedup_over_eager:.2f} times as fast on "
                f"{benchmark.device}: {milliseconds(eager.latency_p50_ms)} under {runtime_name(EAGER)}, "
                f"{milliseconds(best.latency_p50_ms)} under {runtime_name(best.runtime)}"
                f"{of_rounds(best.speedup_over_eager, eager.latency_p50_ms, best.latency_p50_ms)}. That is no gain of "
                f"compression{f'; {NOISY}' if is_noisy(benchmark) else ''}."
            )
    return said
