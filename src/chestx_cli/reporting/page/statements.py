"""Sentences that a study's numbers support."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.core.printable import counted
from chestx_cli.evaluation.results import StudyResults, VariantResults
from chestx_cli.inference.speedups import (
    FASTER,
    NOISY,
    SIZE_TOLERANCE,
    is_noisy,
    milliseconds,
    of_rounds,
    recommendation,
    runtime_name,
    speed_sentence,
    speed_word,
)
from chestx_cli.records.answers import BETTER, INCONCLUSIVE
from chestx_cli.records.benchmark import EAGER
from chestx_cli.records.variant import BASELINE
from chestx_cli.reporting.page.blocks import percent, rate

if TYPE_CHECKING:
    from chestx_cli.records.evaluation import EvaluationRow


def summarise(results: StudyResults) -> tuple[str, ...]:
    """Return sentences on accuracy, size and speed that the numbers support; none on speed without a benchmark."""
    n, _ = results.test_size()
    point = 100 / n
    sentences = [f"With {n} test images, one image is {point:.{1 if point >= 0.1 else 3}f} points of accuracy."]
    sentences.extend(results.caveats)
    baseline = results.baseline
    if baseline and baseline.row:
        sentences.append(_baseline_statement(results, baseline.row, n))
    others = [variant for variant in results.variants if variant.name != BASELINE]
    sentences += [text for variant in others for text in _accuracy_statements(results, variant)]
    compared = [variant.comparison for variant in others if variant.comparison]
    if compared and all(row.word == INCONCLUSIVE for row in compared):
        subject = "No variant is" if len(compared) > 1 else "The only variant compared is not"
        sentences.append(
            f"{subject} shown to differ from the baseline, or to be as good: absence of a difference is no evidence of "
            "equality."
        )
    if not any(variant.row for variant in results.variants):
        sentences.append('There are no test results yet: run "chestx evaluate".')
    sentences.extend(
        dict.fromkeys(text for variant in results.variants for b in variant.benchmarks for text in b.warnings)
    )
    sentences += [text for variant in others if (text := _cost_statement(results, variant))]
    return (*sentences, *_recommendations(results), *_runtime_statements(results))


def _baseline_statement(results: StudyResults, row: EvaluationRow, n: int) -> str:
    low, high = row.accuracy_interval
    return (
        f"The baseline is right on {row.correct} of {n} test images: {percent(row.accuracy)}, 95 % interval "
        f"{100 * low:.1f}–{100 * high:.1f} %. It {_mistakes(results, row)}."
    )


def _mistakes(results: StudyResults, row: EvaluationRow) -> str:
    """Return both kinds of mistakes: a model that calls every image positive has no false negatives."""
    name = results.split_record.positive
    positives, negatives = row.true_positives + row.false_negatives, row.true_negatives + row.false_positives
    if row.false_positives == negatives or row.false_negatives == positives:
        return f"calls {'every' if row.false_positives == negatives else 'no'} image {name}: it separates nothing"
    return (
        f"misses {row.false_negatives} of {positives} {name} images and calls {row.false_positives} of {negatives} "
        f"others {name}"
    )


def _accuracy_statements(results: StudyResults, variant: VariantResults) -> list[str]:
    evaluation, row = variant.evaluation, variant.row
    if evaluation is None or row is None:
        return []
    comparison, n, reference_name = evaluation.comparison, evaluation.images, evaluation.reference
    if comparison is None:
        start = f"{variant.name} is right on {row.correct} of {n} test images ({percent(row.accuracy)})"
        return [f"{start}; it is not compared with the present baseline."]
    sentences = [f"{variant.name} ({percent(row.accuracy)}) is {comparison.verdict}."]
    reference = results.variant(evaluation.baseline)
    if reference and reference.row and row.false_negatives > reference.row.false_negatives:
        sentences.append(
            f"{variant.name} {_mistakes(results, row)}; {reference_name} {_mistakes(results, reference.row)}."
        )
    if comparison.word == BETTER and variant.record.training and variant.record.parent:
        sentences.append(
            f"{variant.name} was trained for {counted(len(variant.record.training.epochs), 'epoch')} more than its "
            "parent, which alone may explain why it is better."
        )
    return sentences


def _cost_statement(results: StudyResults, variant: VariantResults) -> str:
    """Return how a variant's file size and latency compare with those of the FP32 baseline."""
    size, same_size = _size(results, variant)
    zeros = variant.record.pruning.achieved_sparsity if variant.record.pruning else 0
    sentences = []
    if zeros and same_size:
        sentences.append(f"{variant.name} has {percent(zeros)} zeros, and the same file size.")
    elif size:
        sentences.append(f"{variant.name} is {size}.")
    sentences += [text for benchmark in variant.benchmarks if (text := speed_sentence(benchmark, variant.name))]
    return " ".join(sentences)


def _recommendations(results: StudyResults) -> list[str]:
    """Return the fastest choice on each device."""
    int8 = {variant.name for variant in results.variants if variant.record.computes_in_int8}
    sentences: list[str] = []
    for device in results.devices:
        parts = [b for variant in results.variants for b in variant.benchmarks if b.device == device and b.baseline]
        if parts:
            sentences += recommendation(parts, int8, results.comparisons)
    return sentences


def _size(results: StudyResults, variant: VariantResults) -> tuple[str, bool]:
    """Return how a variant's file size compares with the baseline's in the same format, and whether they are equal."""
    if results.baseline is None:
        return "", False
    record, baseline = variant.record, results.baseline.record
    reference, reference_name = baseline.model_bytes, "the baseline"
    if record.quantization and record.parent_sha256 == baseline.model_sha256:
        # Compare ONNX with ONNX: a change of container is not compression.
        reference, reference_name = record.quantization.parent_bytes, "the baseline as FP32 ONNX"
    saved_share = 1 - rate(record.model_bytes, reference)
    if abs(saved_share) < SIZE_TOLERANCE:
        return f"no smaller than {reference_name}", True
    return f"{percent(abs(saved_share))} {'smaller' if saved_share > 0 else 'larger'} than {reference_name}", False


def _runtime_statements(results: StudyResults) -> list[str]:
    """Return the speed-up due to the runtime alone, so that it is not attributed to compression."""
    sentences = []
    for benchmark in results.baseline.benchmarks if results.baseline else ():
        best = results.same_run_speed(benchmark, benchmark.best_fp32_runtime) if benchmark.best_fp32_runtime else None
        eager = results.same_run_speed(benchmark, EAGER)
        if not (best and eager and best.speedup_over_eager):
            continue
        if speed_word(best.speedup_over_eager, best.speedup_over_eager_interval) == FASTER:
            sentences.append(
                f"The runtime alone makes the FP32 baseline {best.speedup_over_eager:.2f} times as fast on "
                f"{benchmark.device}: {milliseconds(eager.latency_p50_ms)} under {runtime_name(EAGER)}, "
                f"{milliseconds(best.latency_p50_ms)} under {runtime_name(best.runtime)}"
                f"{of_rounds(best.speedup_over_eager, eager.latency_p50_ms, best.latency_p50_ms)}. "
                f"This gain is not due to compression{f'; {NOISY}' if is_noisy(benchmark) else ''}."
            )
    return sentences
