"""`chestx benchmark`: latency, throughput, memory and size of every variant under every runtime."""

from __future__ import annotations

import dataclasses
import platform
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from chestx_cli.core.command import Run, stage
from chestx_cli.core.errors import ChestxError, UsageError
from chestx_cli.core.machine import available_threads, processor_name
from chestx_cli.core.options import Opt, joined, parse_counts, parse_names
from chestx_cli.core.shared_options import Baseline, Device, Seed, StudyDir, Threads, Variants
from chestx_cli.evaluation.reading import read_study
from chestx_cli.evaluation.results import EVALUATIONS, VARIANTS
from chestx_cli.inference.bundles import DEVICE_RUNTIME, bundle_of, received_bytes
from chestx_cli.inference.onnx_export import model_for, onnx_file
from chestx_cli.inference.runtimes import RUNTIMES, chosen_runtimes
from chestx_cli.inference.speedups import (
    FASTER,
    best_runtime,
    cost_row,
    noise,
    recommendation,
    runtime_name,
    speed_row,
    speed_sentence,
    speed_word,
    variant_sizes,
)
from chestx_cli.inference.ssh_benchmark import HOST_PYTHON, Host, parse_host, time_on_host
from chestx_cli.inference.timing import Job, Round, time_jobs, time_round
from chestx_cli.networks.devices import device_name, resolve_device
from chestx_cli.records.benchmark import EAGER, BenchmarkRecord
from chestx_cli.records.variant import BASELINE
from chestx_cli.reporting.answers import of_benchmark
from chestx_cli.reporting.decision import decide
from chestx_cli.store.caveats import uses_split
from chestx_cli.store.directory import Study, open_study
from chestx_cli.store.documents import write_record
from chestx_cli.store.lineage import uses_models
from chestx_cli.store.locks import hold

TF32_NOTE = "By default PyTorch computes FP32 convolutions in TF32 on GPUs that support it; these times include that."

if TYPE_CHECKING:
    from chestx_cli.core.record import Answer, Options
    from chestx_cli.evaluation.results import StudyResults
    from chestx_cli.records.evaluation import ComparisonRow
    from chestx_cli.records.variant import VariantRecord
    from chestx_cli.store.split import Split


def _require_effect(options: Options) -> None:
    if options["host"] is None:
        if options["host_python"] != HOST_PYTHON:
            raise UsageError(
                "--host-python has no effect without --host",
                "name the device with --host USER@DEVICE",
                option="host_python",
            )
        return
    if (device := options["device"]) != "cpu":
        raise UsageError(
            f"--device {device}: a device that ssh reaches is timed on its CPU", "leave --device out", option="device"
        )
    if set(options["runtimes"]) - {DEVICE_RUNTIME}:
        raise UsageError(
            f"only {DEVICE_RUNTIME} runs on a device that ssh reaches", "leave --runtimes out", option="runtimes"
        )


@stage(
    examples=(
        "chestx benchmark --threads 1",
        "chestx benchmark --host user@device",
        "chestx benchmark --runtimes torch.compile,onnxruntime --batch-sizes 1,8,32",
    ),
    after="compare",
    check=_require_effect,
)
def benchmark(
    run: Run,
    variants: Variants = (),
    *,
    study: StudyDir = Path("study"),
    device: Device = "cpu",
    runtimes: Annotated[
        tuple[str, ...],
        Opt(
            help="Runtimes; all but torch.compile by default.",
            parse=parse_names,
            show=",".join,
            metavar="NAME,...",
        ),
    ] = (),
    threads: Threads = None,
    batch_sizes: Annotated[
        tuple[int, ...],
        Opt(
            help="Images per call; latency is of the smallest.",
            parse=parse_counts,
            show=joined(","),
            minimum=1,
            maximum=1024,
            metavar="INT,...",
        ),
    ] = (1, 16),
    rounds: Annotated[
        int,
        Opt(help="Interleaved rounds, each in fresh processes.", minimum=1),
    ] = 5,
    duration: Annotated[float, Opt(help="Seconds of calls per batch size and round.", above=0)] = 1.0,
    baseline: Baseline = BASELINE,
    host: Annotated[
        str | None,
        Opt(
            help="Time on this device instead, by ssh.",
            metavar="USER@DEVICE[:PORT]",
            identity=False,
        ),
    ] = None,
    host_python: Annotated[str, Opt(help="Python there, with numpy and onnxruntime.", metavar="PROGRAM")] = HOST_PYTHON,
    seed: Seed = 42,
) -> BenchmarkRecord:
    """Time every variant: latency, throughput, memory, size.

    Torch variants run under eager PyTorch and, exported, under ONNX Runtime and, if its extra is installed, OpenVINO,
    so that the runtime's gain is not mistaken for that of compression. A sentence for each variant says whether it is
    faster than FP32, each under its best runtime, on this machine or on the device that --host names.
    """
    remote = parse_host(host) if host is not None else None
    local_runtimes = chosen_runtimes(runtimes)
    if not batch_sizes:
        raise UsageError("--batch-sizes is empty", "give at least one size, as 1")
    target = open_study(study)
    split = target.read_split()
    hold(run, target.root, "the benchmark")
    reference = target.read_usable_variant(baseline, split)
    if reference.kind != "torch":
        raise UsageError(
            f"--baseline {baseline}: speed is compared with an FP32 torch variant", "name one, as baseline"
        )
    device = resolve_device(device)
    chosen = [reference, *(record for record in target.chosen(variants, split) if record.name != baseline)]
    uses_split(run, target, split)
    caveats = uses_models(run, target, chosen)
    setting = Setting(
        device=device,
        threads=threads,
        batch_sizes=tuple(sorted(set(batch_sizes))),
        rounds=rounds,
        duration_s=duration,
        seed=seed,
    )
    if remote is None:
        measured = _measured_here(run, target, split, _runnable(run, chosen, local_runtimes, device), setting)
    else:
        measured = _measured_remotely(run, target, split, chosen, setting, remote, host_python)
    result = _record(run, target, chosen, setting, measured, baseline)
    stored = read_study(target, parts=(VARIANTS, EVALUATIONS), check_models=False, needed=())
    for sentence in stored.damaged:
        run.warn(sentence)
    result = result.replace(notes=(*_notes(result, chosen, stored.comparisons), *caveats))
    timed = {row.variant for row in result.rows}
    for record in chosen:
        if record.name in timed:
            with target.results_of(record) as folder:
                write_record(folder / f"benchmark.{result.device}.json", result.of(record.name))
    if remote is None:
        from chestx_cli.reporting.figures.drawing import draw_figures

        # These figures show the times of this machine.
        draw_figures(target, ("pruning-comparison", "comparison", "pareto"), run.reporter)
    return result.replace(answer=_answer(result, chosen, stored))


def _answer(result: BenchmarkRecord, chosen: list[VariantRecord], stored: StudyResults) -> Answer:
    """Return the times and, if the variants have been evaluated, which one to ship."""
    names = {row.variant for row in result.rows}
    variants = [
        dataclasses.replace(variant, benchmarks=(result.of(variant.name),)) if variant.name in names else variant
        for variant in stored.variants
    ]
    decision = decide(variants, result.device) if any(variant.evaluation for variant in variants) else None
    return of_benchmark(result, {record.name for record in chosen if record.computes_in_int8}, decision)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Settings for timing all models; `threads` is None for all threads of the machine."""

    device: str
    threads: int | None
    batch_sizes: tuple[int, ...]
    rounds: int
    duration_s: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Timed rounds by variant and runtime, and the device; `warnings` name what was left out."""

    device: str
    machine: str
    threads: int
    timed: dict[tuple[str, str], list[Round]]
    warnings: tuple[str, ...] = ()
    # Environment of a remote device; None for this machine, which the stamp describes.
    environment: dict[str, str] | None = None


def _measured_here(
    run: Run, target: Study, split: Split, pairs: list[tuple[VariantRecord, str]], setting: Setting
) -> Measured:
    jobs, left_out = _compiled_ahead(run, _jobs(run, target, split, pairs, setting))
    with run.reporter.progress("Timing in interleaved rounds", setting.rounds * len(jobs)) as advance:
        rounds_of_jobs = time_jobs([job for _, job in jobs], setting.rounds, advance)
    system = f"{platform.system()} {platform.machine()}"
    return Measured(
        device=setting.device,
        machine=", ".join(dict.fromkeys((device_name(setting.device), processor_name(), system))),
        threads=setting.threads or available_threads(),
        timed={(record.name, job.runtime): rounds for (record, job), rounds in zip(jobs, rounds_of_jobs, strict=True)},
        warnings=left_out,
    )


def _measured_remotely(
    run: Run,
    target: Study,
    split: Split,
    chosen: list[VariantRecord],
    setting: Setting,
    host: Host,
    python: str,
) -> Measured:
    bundles = []
    with run.reporter.progress("Exporting to ONNX", len(chosen)) as advance:
        for record in chosen:
            run.uses(f"{record.name}/{record.model_file}", record.model_sha256)
            model = Path(model_for(run, target, split, record, "onnx").path)
            bundles.append(bundle_of(target, record, model, None))
            advance()
    words = ["--batch-sizes", ",".join(map(str, setting.batch_sizes))]
    words += ["--duration", str(setting.duration_s), "--seed", str(setting.seed)]
    words += ["--threads", str(setting.threads)] if setting.threads else []
    with run.reporter.progress(f"Timing on {host.label}", setting.rounds * len(bundles)) as advance:
        measured = time_on_host(host, python, bundles, words, setting.rounds, advance)
    first = measured[0][0]
    return Measured(
        device=host.label,
        machine=f"{first.environment['processor']}, {first.environment['system']}",
        threads=first.threads,
        timed={
            (record.name, DEVICE_RUNTIME): [answer.round for answer in answers]
            for record, answers in zip(chosen, measured, strict=True)
        },
        environment=first.environment,
    )


def _record(
    run: Run, target: Study, chosen: list[VariantRecord], setting: Setting, measured: Measured, baseline: str
) -> BenchmarkRecord:
    """Return the record of the measurements; raises UsageError if the baseline is not among them."""
    timed = measured.timed
    if not any(name == baseline for name, _ in timed):
        raise UsageError(
            f"{baseline} runs under none of these runtimes on {measured.device}",
            "name others with --runtimes, as onnxruntime",
        )
    stamp = run.stamp()
    if measured.environment is not None:
        stamp = replace(stamp, environment={"chestx-cli": stamp.environment["chestx-cli"], **measured.environment})
    best = best_runtime(timed, baseline, setting.batch_sizes[0])
    records = {record.name: record for record in chosen if any(name == record.name for name, _ in timed)}
    # Compressing a file uses one thread.
    with ThreadPoolExecutor(available_threads()) as pool:
        sizes_in_order = pool.map(lambda record: variant_sizes(target, record), records.values())
        sizes = dict(zip(records, sizes_in_order, strict=True))
    files = {name: onnx_file(target, record) for name, record in records.items()}
    bundles = {name: received_bytes(file.stat().st_size) if file.exists() else None for name, file in files.items()}
    return BenchmarkRecord(
        stamp=stamp,
        warnings=(*measured.warnings, *noise(timed)),
        device=measured.device,
        machine=measured.machine,
        threads=measured.threads,
        rounds=setting.rounds,
        batch_sizes=setting.batch_sizes,
        baseline=baseline,
        best_fp32_runtime=best,
        rows=tuple(speed_row(key, timed, baseline, best, records[key[0]].model_sha256) for key in timed),
        cost_rows=tuple(
            cost_row(records[key[0]], sizes[key[0]], key[1], rounds, bundles[key[0]]) for key, rounds in timed.items()
        ),
    )


def _runnable(
    run: Run, chosen: list[VariantRecord], runtimes: tuple[str, ...], device: str
) -> list[tuple[VariantRecord, str]]:
    """Return the pairs of variant and runtime that can run on the device; warn about variants without a runtime."""
    pairs = [
        (record, runtime)
        for record in chosen
        for runtime in runtimes
        if record.kind in RUNTIMES[runtime].kinds and device in RUNTIMES[runtime].devices
    ]
    for record in chosen:
        if not any(paired is record for paired, _ in pairs):
            run.reporter.warn(f"{record.name} runs under none of {', '.join(runtimes)} on {device}; it is left out")
    return pairs


def _jobs(
    run: Run, target: Study, split: Split, pairs: list[tuple[VariantRecord, str]], setting: Setting
) -> list[tuple[VariantRecord, Job]]:
    """Return the timing job of each pair; exports models that are not exported yet."""
    jobs = []
    with run.reporter.progress("Exporting to ONNX", len(pairs)) as advance:
        for record, runtime in pairs:
            run.uses(f"{record.name}/{record.model_file}", record.model_sha256)
            job = Job(
                model=model_for(run, target, split, record, RUNTIMES[runtime].needs),
                runtime=runtime,
                device=setting.device,
                threads=setting.threads or available_threads(),
                image_size_px=record.preprocessing.image_size_px,
                batch_sizes=setting.batch_sizes,
                duration_s=setting.duration_s,
                seed=setting.seed,
            )
            jobs.append((record, job))
            advance()
    return jobs


def _compiled_ahead(
    run: Run, jobs: list[tuple[VariantRecord, Job]]
) -> tuple[list[tuple[VariantRecord, Job]], tuple[str, ...]]:
    """Compile the models of compiling runtimes in advance, so that the rounds find them in the compiler's cache.

    Models that cannot be compiled are left out, with a warning that gives the compiler's reason.
    """
    compiling = [job for _, job in jobs if RUNTIMES[job.runtime].compiles]
    failed, notes = [], []
    with run.reporter.progress("Compiling", len(compiling)) as advance:
        for record, job in jobs:
            if job not in compiling:
                continue
            try:
                time_round(replace(job, duration_s=0))
            except ChestxError as error:
                failed.append(job)
                notes.append(f"{job.runtime} is left out for {record.name}: {error.fact}")
                run.reporter.warn(notes[-1])
            advance()
    return [(record, job) for record, job in jobs if job not in failed], tuple(notes)


def _notes(
    benchmark: BenchmarkRecord, chosen: list[VariantRecord], verdicts: dict[str, ComparisonRow]
) -> tuple[str, ...]:
    """Return the warnings, a sentence per variant, a recommendation for speed, and how to read the tables."""
    sentences = [speed_sentence(benchmark, record.name) for record in chosen]
    gains = [
        f"{runtime_name(row.runtime)} alone, without any compression, makes {row.variant} "
        f"{row.speedup_over_eager:.2f} times as fast as eager PyTorch: only what exceeds this is due to compression."
        for row in benchmark.rows
        if row.variant == benchmark.baseline
        and row.runtime != EAGER
        and row.speedup_over_eager is not None
        and speed_word(row.speedup_over_eager, row.speedup_over_eager_interval) == FASTER
    ]
    return (
        *benchmark.warnings,
        *(text for text in sentences if text),
        *recommendation((benchmark,), {record.name for record in chosen if record.computes_in_int8}, verdicts),
        *gains,
        *((TF32_NOTE,) if benchmark.device == "cuda" else ()),
        "Latency is of the network alone on prepared input; decoding and resizing come on top. Files are the variant's "
        "own; sparse MB is a theoretical size with zeros removed, and no runtime here can load such a file. MACs are "
        "of the FP32 graph.",
    )
