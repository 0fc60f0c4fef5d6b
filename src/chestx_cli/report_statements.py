"""What a study supports, in words made from its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.reporting import (
    StudyFacts,
    VariantFacts,
    percent,
    rate,
    runtime_name,
    same_runtime_speedup,
)
from chestx_cli.runtimes import EAGER
from chestx_cli.study import BASELINE
from chestx_cli.verdicts import BETTER, UNDECIDED

if TYPE_CHECKING:
    from chestx_cli.records import BenchmarkRecord
    from chestx_cli.result_rows import EvaluationRow

# Differences of latency up to this share are not called a gain or a loss.
LATENCY_TOLERANCE = 0.05
FASTER, SLOWER, NO_FASTER, UNSHOWN = "faster", "slower", "no faster", "not shown to be faster or slower"
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
    if compared and all(row.word == UNDECIDED for row in compared):
        nothing = "No variant is" if len(compared) > 1 else "The only variant compared is not"
        said.append(
            f"{nothing} shown to differ from the baseline, or to be as good: absence of a difference is no evidence of "
            "equality."
        )
    if not any(found.result for found in facts.variants):
        said.append('There are no test results yet: run "chestx evaluate".')
    said.extend(dict.fromkeys(text for found in facts.variants for b in found.benchmarks for text in b.warnings))
    said += [text for found in others if (text := _cost_statement(facts, found))]
    return (*said, *_runtime_statements(facts))


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
    parent = facts.variant(found.record.parent) if found.record.parent else None
    if parent and parent.record.model_sha256 != found.record.parent_sha256:
        said.append(
            f"{found.name} was made from an earlier {parent.name}: against the present one it says "
            "nothing of compression."
        )
    return said


def _cost_statement(facts: StudyFacts, found: VariantFacts) -> str:
    """Return what a variant's file and latency are against the FP32 baseline's."""
    size, same_size = _size(facts, found)
    by_device = {device: _speed(facts, found, device) for device in facts.devices}
    on = {device: f" on {device}" if len(facts.devices) > 1 else "" for device in by_device}
    speeds = [f"{text}{on[device]}" for device, (text, _) in by_device.items() if text]
    unchanged = speeds and all(same for text, same in by_device.values() if text)
    zeros = found.record.pruning.achieved_sparsity if found.record.pruning else 0
    if zeros and same_size:
        said = f"{found.name} has {percent(zeros)} zeros, and the same file size"
        if unchanged:
            return f"{said} and latency, {' and '.join(speeds)}."
        return f"{said}; it is {' and '.join(speeds)}." if speeds else f"{said}."
    claims = " and ".join(text for text in (size, *speeds) if text)
    return f"{found.name} is {claims}." if claims else ""


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


def _speed_word(speedup: float, interval: tuple[float, float] | None) -> str:
    """Return what a ratio of latencies supports; what scatters over 1 from round to round supports nothing."""
    share = 1 / speedup
    if 1 - LATENCY_TOLERANCE <= share <= 1 + LATENCY_TOLERANCE:
        return NO_FASTER
    if interval is None or interval[0] <= 1 <= interval[1]:
        return UNSHOWN
    return FASTER if speedup > 1 else SLOWER


def _times(speedup: float, interval: tuple[float, float] | None) -> str:
    word = _speed_word(speedup, interval)
    if word == NO_FASTER:
        return ""
    if interval is None:
        return f"{speedup:.2f} times as fast (without an interval), "
    low, high = interval
    if word == SLOWER:
        return f"{1 / speedup:.2f} times the latency (95 % {1 / high:.2f}–{1 / low:.2f}), "
    return f"{speedup:.2f} times as fast (95 % {low:.2f}–{high:.2f}), "


def _speed(facts: StudyFacts, found: VariantFacts, device: str) -> tuple[str, bool]:
    """Return a variant's latency against the FP32 baseline's in words, and whether it is the same everywhere."""
    benchmark = next((b for b in found.benchmarks if b.device == device), None)
    if benchmark is None:
        return "", False
    by_word: dict[str, list[str]] = {}
    for row in benchmark.rows:
        speedup, interval = same_runtime_speedup(facts, benchmark, row)
        if speedup is None:
            continue
        baseline = facts.same_run_speed(benchmark, row.runtime)
        measured = f"{_ms(row.latency_p50_ms)}{f' against {_ms(baseline.latency_p50_ms)}' if baseline else ''}"
        detail = f"{_times(speedup, interval)}{measured} under {_place(row.runtime, benchmark)}"
        by_word.setdefault(_speed_word(speedup, interval), []).append(detail)
    said = ", and ".join(f"{word}: {'; '.join(details)}" for word, details in by_word.items())
    fastest = min(benchmark.rows, key=lambda row: row.latency_p50_ms)
    against_best = fastest.speedup_over_best_fp32
    if fastest.runtime != benchmark.best_fp32_runtime and against_best is not None:
        best = runtime_name(benchmark.best_fp32_runtime)
        ratio = (against_best, fastest.speedup_over_best_fp32_interval)
        detail = f"{_times(*ratio)}{_ms(fastest.latency_p50_ms)} under {runtime_name(fastest.runtime)}"
        said += f"{'; ' if said else ''}{_speed_word(*ratio)} than the FP32 baseline under its best runtime, {best}: "
        said += detail
    return said, set(by_word) == {NO_FASTER}


def _place(runtime: str, benchmark: BenchmarkRecord) -> str:
    best = runtime == benchmark.best_fp32_runtime
    return runtime_name(runtime) + (" (the best FP32 runtime)" if best else "")


def _ms(value: float) -> str:
    return f"{value:.{1 if value >= 10 else 2}f} ms"


def _runtime_statements(facts: StudyFacts) -> list[str]:
    """Return what the runtime alone gains, so that nobody takes it for a gain of compression."""
    said = []
    for benchmark in facts.baseline.benchmarks if facts.baseline else ():
        best = facts.same_run_speed(benchmark, benchmark.best_fp32_runtime)
        eager = facts.same_run_speed(benchmark, EAGER)
        if not (best and eager and best.speedup_over_eager):
            continue
        if _speed_word(best.speedup_over_eager, best.speedup_over_eager_interval) == FASTER:
            said.append(
                f"The runtime alone makes the FP32 baseline {best.speedup_over_eager:.2f} times as fast on "
                f"{benchmark.device}: {_ms(eager.latency_p50_ms)} under {runtime_name(EAGER)}, "
                f"{_ms(best.latency_p50_ms)} under {runtime_name(best.runtime)}. That is no gain of compression."
            )
    return said
