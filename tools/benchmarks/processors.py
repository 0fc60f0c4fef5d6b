"""Latencies and training with instruction sets of this processor hidden, in interleaved rounds.

    python -m tools.benchmarks.processors --study STUDY --work FOLDER --only latency

Times every variant of a study under each runtime, with the instructions of this processor and with VNNI, or AVX512 and
VNNI, hidden (tools/benchmarks/hidden_instructions.py). Full 8-bit weights are timed with and without ONNX Runtime's
option against saturation, since the system still lists what is hidden. `--only training` trains for one epoch in FP32,
and runs the notebook's training.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from chestx_cli.core.files import write_atomic
from chestx_cli.core.machine import available_threads
from chestx_cli.evaluation.statistics.intervals import mean_ratio_interval
from chestx_cli.inference import timing
from chestx_cli.inference.runtimes import RUNTIMES, Compute, Model
from chestx_cli.inference.timing import Job
from chestx_cli.records.benchmark import EAGER
from chestx_cli.records.variant import BASELINE
from chestx_cli.store.directory import Study
from tools.benchmarks.compression import exported
from tools.benchmarks.hidden_instructions import LEVELS, PACKAGES, hiding
from tools.harness.documents import insert
from tools.harness.machine import describe
from tools.harness.processes import ROOT, chestx, in_turn, module, run_process, say

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

NOTHING = "none"
SHOWN = {NOTHING: "nothing", "vnni": "VNNI and BF16", "avx512": "AVX512, VNNI and BF16"}
ONNX, OPENVINO = "onnxruntime", "openvino"
# With and without ONNX Runtime's option against saturation, whatever the system says of the processor.
EXACT, SATURATING = "onnxruntime (exact)", "onnxruntime (saturating)"
PRECISION = {EXACT: "1", SATURATING: "0"}
RUNTIMES_OF = {"torch": (EAGER, ONNX, OPENVINO), "onnx": (ONNX, OPENVINO)}


@dataclass(frozen=True, kw_only=True)
class Side:
    """A timed model: the hidden level, the variant, the runtime, and the one in FP32 that it was made of."""

    level: str
    variant: str
    runtime: str
    parent: str | None
    job: Job


@dataclass(frozen=True, kw_only=True)
class Line:
    """A side's median of the rounds' median latencies, and of its ratios to FP32, with 95 % intervals over rounds.

    share: of the latency of the variant that it was quantized from, under the same runtime.
    speedup: over the baseline in FP32 under its fastest runtime at this level. eager: over it in eager PyTorch.
    """

    level: str
    variant: str
    runtime: str
    p50_ms: float
    share: float | None
    share_interval: tuple[float, float] | None
    speedup: float
    speedup_interval: tuple[float, float] | None
    eager: float
    eager_interval: tuple[float, float] | None


def sides_of(study: Study, levels: Sequence[str], names: Sequence[str], duration_s: float) -> list[Side]:
    """Return what to time: each variant at each level under each installed runtime."""
    sides = []
    for level in levels:
        for record in (study.read_variant(name) for name in names):
            runtimes = [name for name in RUNTIMES_OF[record.kind] if RUNTIMES[name].installed]
            if record.quantization and record.quantization.target_cpu == "vnni":
                runtimes = [*PRECISION, *(name for name in runtimes if name != ONNX)]
            for runtime in runtimes:
                is_torch = runtime == EAGER
                path = study.variant(record.name) / record.model_file
                path = exported(study, record.name) if record.kind == "torch" and not is_torch else path
                model = Model(
                    path=str(path.resolve()),
                    kind="torch" if is_torch else "onnx",
                    backbone=record.backbone,
                    n_classes=len(record.classes),
                )
                job = Job(
                    model=model,
                    runtime=runtime,
                    device="cpu",
                    threads=available_threads(),
                    image_size_px=record.preprocessing.image_size_px,
                    batch_sizes=(1,),
                    duration_s=duration_s,
                    seed=42,
                )
                parent = record.parent if record.kind == "onnx" else None
                sides.append(Side(level=level, variant=record.name, runtime=runtime, parent=parent, job=job))
    return sides


def time_sides(sides: Sequence[Side], rounds: int, environments: dict[str, dict[str, str]]) -> list[list[float]]:
    """Return the median latency in ms of each side's rounds; each round is a process of its own."""

    def p50_ms(side: Side) -> float:
        words = module("benchmarks.processors", "--job", json.dumps(dataclasses.asdict(side.job)))
        env = {**environments[side.level], "OMP_NUM_THREADS": str(side.job.threads)}
        answer = json.loads(run_process(words, env).out.strip().splitlines()[-1])
        if "failed" in answer:
            raise SystemExit(f"{side.variant} under {side.runtime}: {answer['failed']}")
        if timing.is_busy(answer["waited_share"]):
            say(f"NOISY: {side.variant} waited {answer['waited_share']:.0%} of its time: {timing.BUSY}")
        seconds: list[float] = answer["seconds"]["1"]
        return 1000 * median(seconds)

    return in_turn(rounds, *(lambda number, side=side: _said(number, side, p50_ms(side)) for side in sides))


def _said(number: int, side: Side, ms: float) -> float:
    say(f"round {number + 1}, without {side.level}: {side.variant}, {side.runtime}: {ms:.2f} ms")
    return ms


def time_one(document: str) -> None:
    """Time one job in this process; write the round to stdout."""
    for name, precision in PRECISION.items():
        RUNTIMES.add(name, dataclasses.replace(RUNTIMES[ONNX], open=partial(_open_with, precision)))
    timing.main(document)


def _open_with(precision: str, model: Model, threads: int, device: str) -> Compute:  # noqa: ARG001 - as of any runtime
    """Open a file with this value of `session.x64quantprecision`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.x64quantprecision", precision)
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.path, options, providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()

    def compute(inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        logits: npt.NDArray[np.float32] = session.run(None, {source.name: inputs})[0]
        return logits

    return compute


def lines_of(sides: Sequence[Side], p50_ms: Sequence[list[float]]) -> list[Line]:
    """Return the ratios of each side, round by round."""
    times = {(side.level, side.variant, side.runtime): ms for side, ms in zip(sides, p50_ms, strict=True)}
    lines = []
    for side in sides:
        own = times[side.level, side.variant, side.runtime]
        fp32 = [times.get((side.level, BASELINE, runtime)) for runtime in (ONNX, OPENVINO)]
        best = min((ms for ms in fp32 if ms), key=median)
        runtime = ONNX if side.runtime in PRECISION else side.runtime
        parent = times[side.level, side.parent, runtime] if side.parent else None
        shares = _ratios(own, parent) if parent else None
        speedups = _ratios(best, own)
        of_eager = _ratios(times[side.level, BASELINE, EAGER], own)
        lines.append(
            Line(
                level=side.level,
                variant=side.variant,
                runtime=side.runtime,
                p50_ms=median(own),
                share=median(shares) if shares else None,
                share_interval=mean_ratio_interval(shares) if shares else None,
                speedup=median(speedups),
                speedup_interval=mean_ratio_interval(speedups),
                eager=median(of_eager),
                eager_interval=mean_ratio_interval(of_eager),
            )
        )
    return lines


def _ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def latency_table(lines: Sequence[Line]) -> str:
    """Return the lines as Markdown."""
    rows = [
        "| hidden | variant | runtime | p50 ms | of its FP32's time | × eager baseline | × baseline, best runtime |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for line in lines:
        share = "–" if line.share is None else f"{line.share:.2f}{_range(line.share_interval)}"
        rows.append(
            f"| {SHOWN[line.level]} | {line.variant} | {line.runtime} | {line.p50_ms:.2f} | {share} | "
            f"{line.eager:.2f}{_range(line.eager_interval)} | {line.speedup:.2f}{_range(line.speedup_interval)} |"
        )
    return "\n".join(rows)


def _range(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" ({interval[0]:.2f}–{interval[1]:.2f})"


def training_table(data: Path, weights: Path, environments: dict[str, dict[str, str]]) -> str:
    """Train for one epoch in FP32 at each level, and in the notebook; return the times as Markdown."""
    rows = [
        "| hidden | program | s per epoch | 10⁹ operations/s | of a large product's | peak memory, GB |",
        "|---|---|---:|---:|---:|---:|",
    ]
    start = ("--weights", weights)
    with tempfile.TemporaryDirectory(prefix="chestx-bench-") as folder:
        for level, env in environments.items():
            study = Path(folder) / level
            run_process(chestx("split", data, "--study", study))
            say(f"training without {level}")
            fit = ("--epochs", 1, "--precision", "fp32", "--study", study)
            ended = run_process(chestx("train", data, *start, *fit), env)
            with (study / "variants" / BASELINE / "training.csv").open() as file:
                (epoch,) = csv.DictReader(file)
            counted = run_process(module("benchmarks.multiplications", "--study", study)).json()
            peak = run_process(module("harness.machine"), env).json()["operations_per_s"]["fp32"]
            images = counted["images"]
            # A backward pass is two products for each one of the forward pass; a product is two operations.
            rate = 2 * counted["macs"] * (3 * images["train"] + images["val"]) / float(epoch["duration_s"])
            rows.append(
                f"| {SHOWN[level]} | chestx | {float(epoch['duration_s']):.1f} | {rate / 1e9:.0f} | "
                f"{rate / peak:.0%} of {peak / 1e9:.0f} | {ended.peak_bytes / 1e9:.2f} |"
            )
            say(rows[-1])
        for level, env in environments.items():
            out = Path(folder) / f"notebook-{level}"
            steps = ("--data", data, *start, "--out", out, "--epochs", 1, "--steps", "split,train")
            ended = run_process(module("benchmarks.reference.notebook", *steps), env)
            (seconds,) = [one["seconds"] for one in map(json.loads, ended.out.splitlines()) if one["step"] == "train"]
            rows.append(f"| {SHOWN[level]} | notebook | {seconds:.1f} | – | – | {ended.peak_bytes / 1e9:.2f} |")
            say(rows[-1])
    return "\n".join(rows)


def main(words: Sequence[str] | None = None) -> int:
    """Measure, and write the tables into docs/results.md."""
    typed = sys.argv[1:] if words is None else list(words)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--study", type=Path, help="study with a baseline and its quantized variants")
    parser.add_argument("--variants", default="", help="variants to time; all by default")
    parser.add_argument("--data", type=Path, help="images to train with")
    parser.add_argument("--weights", type=Path, help="initial weights of the training")
    parser.add_argument("--work", type=Path, help="folder for copies of libraries and results, kept")
    parser.add_argument("--hide", default=",".join((NOTHING, *LEVELS)), help="levels, of none, vnni, avx512")
    parser.add_argument("--only", choices=("latency", "training"), required="--job" not in typed)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--duration", type=float, default=1.0, help="seconds of calls per model and round")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the table goes")
    options = parser.parse_args(typed)
    if options.job:
        time_one(options.job)
        return 0
    options.work.mkdir(parents=True, exist_ok=True)
    work = options.work.resolve()
    environments: dict[str, dict[str, str]] = {
        level: {} if level == NOTHING else hiding(level, work, PACKAGES) for level in options.hide.split(",")
    }
    if options.only == "latency":
        study = Study(options.study)
        names = options.variants.split(",") if options.variants else [one.name for one in study.read_variants()]
        sides = sides_of(study, list(environments), names, options.duration)
        p50_ms = time_sides(sides, options.rounds, environments)
        lines = lines_of(sides, p50_ms)
        document = {"machine": describe(), "lines": [dataclasses.asdict(line) for line in lines], "p50_ms": p50_ms}
        write_atomic(work / f"latency-{'-'.join(environments)}.json", json.dumps(document, indent=1) + "\n")
        table = latency_table(lines)
    else:
        table = training_table(options.data, options.weights, environments)
    command = "python -m tools.benchmarks.processors " + shlex.join(_shown(typed))
    text = f"{table}\n\n```\n{command}\n```"
    insert(options.docs / "results.md", f"processors, {options.only}, {' and '.join(environments)}", text)
    print(text)
    return 0


def _shown(words: Sequence[str]) -> list[str]:
    """Return a command line with only the names of files and folders."""
    return [Path(word).name if os.sep in word else word for word in words]


if __name__ == "__main__":
    sys.exit(main())
