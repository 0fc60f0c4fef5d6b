"""What a study supports, in words made from its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.benchmark_records import EAGER
from chestx_cli.reporting import StudyFacts, VariantFacts, percent, rate
from chestx_cli.speed import (
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
from chestx_cli.study import BASELINE
from chestx_cli.verdicts import BETTER, INCONCLUSIVE

if TYPE_CHECKING:
    from chestx_cli.result_rows import EvaluationRow

SIZE_TOLERANCE = 0.005


def summarise(facts: StudyFacts) -> tuple[str, ...]:
    """Return what the numbers support, in words; without a benchmark nothing is said on speed."""
    n, _ = facts.test_size()
    point = 100 / n
    said = [f"With {n} test images, one image is {point:.{1 if point >= 0.1 else 3}f} points of accuracy."]
    said.extend(facts.caveats())
    baseline = facts.baseline
    if baseline and baseline.result:
        said.append(_baseline_statement(facts, baseline.result, n))
    others = [found for found in facts.variants if found.name != BASELINE]
    said += [text for found in others for text in _accuracy_statements(facts, found)]
    compared = [found.comparison for found in others if found.comparison]
    if compared and all(row.word == INCONCLUSIVE for row in compared):
        nothing = "No variant is" if len(compared) > 1 else "The only variant compared is not"
        said.append(
            f"{nothing} shown to differ from the baseline, or to be as good: absence of a difference is no evidence of "
            "equality."
        )
    if not any(found.result for found in facts.variants):
        said.append('There are no test results yet: run "chestx evaluate".')
    said.extend(dict.fromkeys(text for found in facts.variants for b in found.benchmarks for text in b.warnings))
    said += [text for found in others if (text := _cost_statement(facts, found))]
    return (*said, *_recommendations(facts), *_runtime_statements(facts))


def _baseline_statement(facts: StudyFacts, row: EvaluationRow, n: int) -> str:
    low, high = row.accuracy_interval
    return (
        f"The baseline is right on {row.correct} of {n} test images: {percent(row.accuracy)}, 95 % interval "
        f"{100 * low:.1f}–{100 * high:.1f} %. It {_mistakes(facts, row)}."
    )


def _mistakes(facts: StudyFacts, row: EvaluationRow) -> str:
    """Return both kinds of mistakes: a model that calls everything positive misses nothing."""
    name = facts.split_record.positive
    positives, negatives = row.true_positives + row.false_negatives, row.true_negatives + row.false_positives
    if row.false_positives == negatives or row.false_negatives == positives:
        return f"calls {'every' if row.false_positives == negatives else 'no'} image {name}: it tells nothing"
    return (
        f"misses {row.false_negatives} of {positives} {name} images and calls {row.false_positives} of {negatives} "
        f"others {name}"
    )


def _accuracy_statements(facts: StudyFacts, found: VariantFacts) -> list[str]:
    evaluation, row = found.evaluation, found.result
    if evaluation is None or row is None:
        return []
    comparison, n, who = evaluation.comparison, evaluation.images, evaluation.reference
    if comparison is None:
        right = f"{found.name} is right on {row.correct} of {n} test images ({percent(row.accuracy)})"
        return [f"{right}; it is not compared with the present baseline."]
    said = [f"{found.name} ({percent(row.accuracy)}) is {comparison.verdict}."]
    reference = facts.variant(evaluation.baseline)
    if reference and reference.result and row.false_negatives > reference.result.false_negatives:
        said.append(f"{found.name} {_mistakes(facts, row)}; {who} {_mistakes(facts, reference.result)}.")
    if comparison.word == BETTER and found.record.training and found.record.parent:
        said.append(
            f"{found.name} was trained for {len(found.record.training.epochs)} epochs more than its parent: that "
            "alone may be what made it better."
        )
    return said


def _cost_statement(facts: StudyFacts, found: VariantFacts) -> str:
    """Return what a variant's file and latency are against the FP32 baseline's."""
    size, same_size = _size(facts, found)
    zeros = found.record.pruning.achieved_sparsity if found.record.pruning else 0
    said = []
    if zeros and same_size:
        said.append(f"{found.name} has {percent(zeros)} zeros, and the same file size.")
    elif size:
        said.append(f"{found.name} is {size}.")
    said += [text for benchmark in found.benchmarks if (text := speed_sentence(benchmark, found.name))]
    return " ".join(said)


def _recommendations(facts: StudyFacts) -> list[str]:
    """Return what to use for speed on each device; ratios are of each variant's own run, so that runs can be joined."""
    int8 = {found.name for found in facts.variants if found.record.quantization}
    verdicts = {found.name: found.comparison for found in facts.variants if found.comparison}
    said: list[str] = []
    for device in facts.devices:
        parts = [b for found in facts.variants for b in found.benchmarks if b.device == device and b.baseline]
        if parts:
            joined = parts[0].replace(rows=tuple(row for part in parts for row in part.rows))
            said += recommendation(joined, int8, verdicts)
    return said


def _size(facts: StudyFacts, found: VariantFacts) -> tuple[str, bool]:
    """Return how a variant's file compares with the baseline's in the same format, and whether it is as large."""
    if facts.baseline is None:
        return "", False
    record, baseline = found.record, facts.baseline.record
    reference, what = baseline.model_bytes, "the baseline"
    if record.quantization and record.parent_sha256 == baseline.model_sha256:
        # Another container is no compression: ONNX is compared with ONNX.
        reference, what = record.quantization.parent_bytes, "the baseline as FP32 ONNX"
    saved = 1 - rate(record.model_bytes, reference)
    if abs(saved) < SIZE_TOLERANCE:
        return f"no smaller than {what}", True
    return f"{percent(abs(saved))} {'smaller' if saved > 0 else 'larger'} than {what}", False


def _runtime_statements(facts: StudyFacts) -> list[str]:
    """Return what the runtime alone gains, so that nobody takes it for a gain of compression."""
    said = []
    for benchmark in facts.baseline.benchmarks if facts.baseline else ():
        best = facts.same_run_speed(benchmark, benchmark.best_fp32_runtime) if benchmark.best_fp32_runtime else None
        eager = facts.same_run_speed(benchmark, EAGER)
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
