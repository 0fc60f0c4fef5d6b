"""`chestx benchmark`: size, cost, latency and throughput of every variant under every runtime."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from chestx_cli.devices import resolve_device
from chestx_cli.errors import UsageError
from chestx_cli.exporting import CHECKED_IMAGES, export_onnx
from chestx_cli.files import write_atomic
from chestx_cli.locks import hold
from chestx_cli.models import load_network
from chestx_cli.options import Baseline, Device, Opt, Seed, StudyDir, Threads, Variants
from chestx_cli.pixels import open_pixels
from chestx_cli.records import BenchmarkRecord, BenchmarkRow, VariantRecord
from chestx_cli.runtimes import EAGER, RUNTIMES, Model
from chestx_cli.stage import Run, available_threads, stage
from chestx_cli.stats import mean_ratio_interval
from chestx_cli.study import BASELINE, Study, write_record
from chestx_cli.timing import Job, Round, time_jobs

if TYPE_CHECKING:
    from chestx_cli.study import Split

LATENCY_BATCH = 1
THROUGHPUT_BATCH = 16
# Rounds of one model that differ by more than this were not measured on a quiet machine.
NOISY_SPREAD = 1.5


@stage
def benchmark(
    run: Run,
    variants: Variants = (),
    *,
    study: StudyDir = Path("study"),
    device: Device = "cpu",
    threads: Threads = None,
    rounds: Annotated[
        int, Opt(help="Interleaved rounds; every variant and runtime has its turn in each.", minimum=1)
    ] = 5,
    duration: Annotated[float, Opt(help="Seconds of calls per batch size and round.", above=0)] = 1.0,
    baseline: Baseline = BASELINE,
    seed: Seed = 42,
) -> BenchmarkRecord:
    """Measure file size, parameters, MACs, latency and throughput of variants under each runtime.

    Torch variants run under eager PyTorch and, exported, under ONNX Runtime, so that the runtime's gain is not taken
    for that of compression. Each runs in a process of its own, warmed up, with a fixed number of threads.
    """
    target = Study(study)
    split = target.read_split()
    hold(run, target.root, "the benchmark")
    reference = target.read_usable_variant(baseline, split)
    if reference.kind != "torch":
        raise UsageError(
            f"--baseline {baseline}: speed is compared with an FP32 torch variant", "name one, as baseline"
        )
    device = resolve_device(device)
    chosen = [reference, *(record for record in target.chosen(variants, split) if record.name != baseline)]
    pairs = _runnable(run, chosen, device)
    run.uses("split.csv", split.sha256)
    n_threads = threads or available_threads()
    jobs = []
    with run.reporter.progress("Exporting to ONNX", len(pairs)) as advance:
        for record, runtime in pairs:
            run.uses(f"{record.name}/{record.model_file}", record.model_sha256)
            jobs.append(
                Job(
                    model=model_for(run, target, split, record, RUNTIMES[runtime].needs),
                    runtime=runtime,
                    device=device,
                    threads=n_threads,
                    image_size_px=record.preprocessing.image_size_px,
                    batch_sizes=(LATENCY_BATCH, THROUGHPUT_BATCH),
                    duration_s=duration,
                    seed=seed,
                )
            )
            advance()
    with run.reporter.progress("Timing in interleaved rounds", rounds * len(jobs)) as advance:
        keys = [(record.name, runtime) for record, runtime in pairs]
        timed = dict(zip(keys, time_jobs(jobs, rounds, advance), strict=True))
    best = min((key for key in timed if key[0] == baseline), key=lambda key: _median_s(timed[key], LATENCY_BATCH))[1]
    rows = tuple(_row(record, runtime, timed, baseline, best) for record, runtime in pairs)
    warnings = _noise(timed)
    result = BenchmarkRecord(
        stamp=run.stamp(),
        notes=(*warnings, *_notes(rows, baseline)),
        warnings=warnings,
        device=device,
        threads=n_threads,
        rounds=rounds,
        latency_batch=LATENCY_BATCH,
        throughput_batch=THROUGHPUT_BATCH,
        baseline=baseline,
        best_fp32_runtime=best,
        rows=rows,
    )
    for name in dict.fromkeys(row.variant for row in rows):
        write_record(target.variant(name) / f"benchmark.{device}.json", result.of(name))
    from chestx_cli.figures import draw_figures

    draw_figures(target, ("pruning-comparison", "comparison", "pareto"))
    return result


def _runnable(run: Run, chosen: list[VariantRecord], device: str) -> list[tuple[VariantRecord, str]]:
    """Return each variant with each runtime that runs it on the device; say which variants none does."""
    pairs = [
        (record, runtime)
        for record in chosen
        for runtime, entry in RUNTIMES.items()
        if record.kind in entry.kinds and device in entry.devices
    ]
    for record in chosen:
        if not any(found is record for found, _ in pairs):
            run.reporter.warn(f"{record.name} runs on the CPU only; it is left out on {device}")
    return pairs


def model_for(run: Run, target: Study, split: Split, record: VariantRecord, needs: str) -> Model:
    """Return the file that a runtime needs; a torch variant's export is kept in the cache, named by its weights."""
    path = target.variant(record.name) / record.model_file
    kind = record.kind
    if needs == "onnx" and kind == "torch":
        path = target.cache / f"onnx-{record.model_sha256[:16]}.onnx"
        kind = "onnx"
        if not path.exists():
            pixels = open_pixels(target, split, record.preprocessing, run.reporter)
            inputs = record.preprocessing.normalised(pixels[split.indices("val")[:CHECKED_IMAGES]])
            write_atomic(path, export_onnx(load_network(target, record), inputs))
    return Model(path=str(path), kind=kind, backbone=record.backbone, n_classes=len(record.classes))


def _median_s(rounds: list[Round], batch: int) -> float:
    return statistics.median(seconds for found in rounds for seconds in found.seconds[batch])


def _speedup(reference: list[Round], own: list[Round]) -> tuple[float, tuple[float, float] | None]:
    """Return how many times faster a call is, and its 95 % interval.

    It is the median over rounds of the ratio of the round's medians; rounds are the unit of the interval, since the
    calls of one round share what the machine was busy with.
    """
    ratios = [
        statistics.median(a.seconds[LATENCY_BATCH]) / statistics.median(b.seconds[LATENCY_BATCH])
        for a, b in zip(reference, own, strict=True)
    ]
    return statistics.median(ratios), None if reference is own else mean_ratio_interval(ratios)


def _row(
    record: VariantRecord, runtime: str, timed: dict[tuple[str, str], list[Round]], baseline: str, best: str
) -> BenchmarkRow:
    import numpy as np

    rounds = timed[record.name, runtime]
    calls_ms = np.concatenate([found.seconds[LATENCY_BATCH] for found in rounds]) * 1000
    p50, p90, p99 = (float(value) for value in np.percentile(calls_ms, [50, 90, 99]))
    eager = timed.get((baseline, EAGER))
    over_eager, over_eager_interval = (None, None) if eager is None else _speedup(eager, rounds)
    over_best, over_best_interval = _speedup(timed[baseline, best], rounds)
    return BenchmarkRow(
        variant=record.name,
        runtime=runtime,
        model_bytes=record.model_bytes,
        size_mb=record.model_bytes / 1e6,
        parameters=record.parameters,
        nonzero_parameters=record.nonzero_parameters,
        macs=record.macs,
        gmacs=record.macs / 1e9,
        latency_p50_ms=p50,
        latency_p90_ms=p90,
        latency_p99_ms=p99,
        throughput_images_per_s=THROUGHPUT_BATCH / _median_s(rounds, THROUGHPUT_BATCH),
        speedup_over_eager=over_eager,
        speedup_over_eager_interval=over_eager_interval,
        speedup_over_best_fp32=over_best,
        speedup_over_best_fp32_interval=over_best_interval,
        samples=len(calls_ms),
        model_sha256=record.model_sha256,
    )


def _noise(timed: dict[tuple[str, str], list[Round]]) -> tuple[str, ...]:
    """Return a warning where the rounds of one and the same model differ much, or where there is only one."""
    medians = {
        key: [statistics.median(found.seconds[LATENCY_BATCH]) for found in rounds] for key, rounds in timed.items()
    }
    worst = max(medians, key=lambda key: max(medians[key]) / min(medians[key]))
    spread = max(medians[worst]) / min(medians[worst])
    said = []
    if spread > NOISY_SPREAD:
        said.append(
            f"NOISY: the rounds of {worst[0]} under {worst[1]} differ by a factor of {spread:.1f}. The machine was "
            "busy, or its threads were in each other's way: do not quote these times; try again on a quiet machine, or "
            "with --threads."
        )
    if any(len(rounds) == 1 for rounds in timed.values()):
        said.append(
            "One round only: how far these times scatter cannot be told. Use more --rounds before quoting them."
        )
    slow = [
        f"{name} under {runtime}"
        for (name, runtime), rounds in timed.items()
        if _median_s(rounds, LATENCY_BATCH) > _median_s(rounds, THROUGHPUT_BATCH)
    ]
    if slow:
        said.append(
            f"NOISY: one image took longer than a batch of {THROUGHPUT_BATCH} ({', '.join(slow)}): do not quote these "
            "times."
        )
    return tuple(said)


def _notes(rows: tuple[BenchmarkRow, ...], baseline: str) -> tuple[str, ...]:
    notes = [
        "Latency is of the network alone on prepared input; decoding and resizing come on top. File MB is the "
        "variant's own file; MACs are of the FP32 graph."
    ]
    runtime_gain = {row.runtime: row.speedup_over_eager for row in rows if row.variant == baseline}
    for runtime, gain in runtime_gain.items():
        if runtime != EAGER and gain is not None:
            notes.append(
                f"{runtime} alone, without any compression, makes {baseline} {gain:.2f} times as fast as eager "
                "PyTorch: only what exceeds this is gained by compression."
            )
    return tuple(notes)
