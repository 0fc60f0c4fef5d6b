"""Effect of compression on real images: latency, size and accuracy over folds, compared with PyTorch and NNCF.

    python -m tools.benchmarks.compression --data DATA --weights FILE --work FOLDER

Five patient-grouped folds; in each, a baseline is trained, pruned, quantized and tested separately with the user's
commands. Latencies are measured with the first fold's models, in interleaved rounds, each in a fresh process. Variants
already in `--work` are not made again.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chestx_cli.core.files import write_atomic
from chestx_cli.core.machine import available_threads
from chestx_cli.core.progress import SilentReporter
from chestx_cli.core.record import jsonable
from chestx_cli.evaluation.statistics.intervals import mean_ratio_interval
from chestx_cli.inference.runtimes import RUNTIMES, Model
from chestx_cli.inference.timing import BUSY, Job, is_busy, time_round
from chestx_cli.records.benchmark import EAGER
from chestx_cli.records.variant import BASELINE
from chestx_cli.store.directory import Study
from tools.harness.documents import insert
from tools.harness.machine import describe
from tools.harness.processes import chestx, in_turn, module, run_process, say

ROOT = Path(__file__).parents[2]
ONNX, OPENVINO = "onnxruntime", "openvino"
CALIBRATION_IMAGES = 128
FP32_EAGER, FP32_ONNX = "FP32, eager PyTorch", "FP32, ONNX Runtime"
NNCF = "NNCF INT8 of the baseline, OpenVINO"
PRUNED, BEST, QUANTIZED = "structured-75", "structured-75-static-int8", "static-int8"
RECIPE = ("--amount", 0.75, "--finetune-epochs", 24, "--distill", "--teacher-weight", 0.9, "--lr", 3e-4)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the table: the comparison, the ratio with its 95 % interval over rounds, and the target."""

    what: str
    value: float
    interval: tuple[float, float] | None
    target: float
    detail: str

    def line(self) -> str:
        """Return the figure as a row of a Markdown table."""
        interval = f"{self.interval[0]:.2f}–{self.interval[1]:.2f}" if self.interval else "–"
        reached = "yes" if self.value >= self.target else "**no**"
        return f"| {self.what} | {self.value:.2f}× | {interval} | ≥ {self.target:g}× | {reached} | {self.detail} |"


def make_folds(data: Path, weights: Path, root: Path, folds: int) -> None:
    """Train, prune, quantize and evaluate in each fold separately."""
    if not (root / "folds.json").exists():
        run_process(chestx("split", data, "--folds", folds, "--study", root))
    for number in range(1, folds + 1):
        study = ("--study", root / f"fold-{number}")
        say(f"fold {number} of {folds}")
        run_process(chestx("train", data, "--weights", weights, *study))
        run_process(chestx("prune", "--method", "structured", *RECIPE, "--name", PRUNED, *study))
        run_process(chestx("quantize", "--method", "static", "--from", PRUNED, *study))
        run_process(chestx("quantize", "--method", "static", *study))
        run_process(chestx("evaluate", *study))


def nncf_model(study: Study, onnx: Path) -> Path:
    """Return the baseline quantized by NNCF, calibrated on as many training images as chestx uses."""
    from chestx_cli.data.images.pixel_cache import open_pixels

    out = study.cache / "nncf-baseline.xml"
    if not out.exists():
        split = study.read_split()
        record = study.read_variant(BASELINE)
        pixels = open_pixels(study, split, record.preprocessing, SilentReporter())
        rows = np.random.default_rng(42).permutation(split.indices("train"))[:CALIBRATION_IMAGES]
        images = study.cache / "nncf-calibration.npy"
        np.save(images, record.preprocessing.normalised(pixels[rows]))
        run_process(module("benchmarks.reference.nncf_int8", "quantize", onnx, images, out))
        images.unlink()
    return out


def models_of(study: Study, onnx: Path) -> dict[str, tuple[str, Path, str]]:
    """Return the models of chestx to time: runtime, file and kind by label."""
    baseline, best = study.read_variant(BASELINE), study.read_variant(BEST)
    weights = study.variant(BASELINE) / baseline.model_file
    return {
        FP32_EAGER: (EAGER, weights, "torch"),
        FP32_ONNX: (ONNX, onnx, "onnx"),
        "FP32, OpenVINO": (OPENVINO, onnx, "onnx"),
        f"{QUANTIZED}, ONNX Runtime": (ONNX, study.variant(QUANTIZED) / "model.onnx", "onnx"),
        f"{BEST}, ONNX Runtime": (ONNX, study.variant(BEST) / best.model_file, "onnx"),
        f"{BEST}, OpenVINO": (OPENVINO, study.variant(BEST) / best.model_file, "onnx"),
    }


def exported(study: Study, name: str) -> Path:
    """Return a torch variant's ONNX file as exported by the command and checked against torch."""
    path = study.cache / f"onnx-{study.read_variant(name).model_sha256[:16]}.onnx"
    if not path.exists():
        run_process(chestx("benchmark", name, "--rounds", 1, "--duration", 0.1, "--study", study.root))
    return path


def time_models(study: Study, rounds: int, duration_s: float) -> dict[str, list[list[float]]]:
    """Return the seconds of single-image calls by label and round; every model runs each round in a fresh process."""
    record = study.read_variant(BASELINE)
    side_px, threads = record.preprocessing.image_size_px, available_threads()
    onnx = exported(study, BASELINE)
    peer = nncf_model(study, onnx)

    def own(runtime: str, path: Path, kind: str) -> Callable[[], list[float]]:
        job = Job(
            model=Model(path=str(path), kind=kind, backbone=record.backbone, n_classes=len(record.classes)),
            runtime=runtime,
            device="cpu",
            threads=threads,
            image_size_px=side_px,
            batch_sizes=(1,),
            duration_s=duration_s,
            seed=42,
        )

        def seconds_of_a_round() -> list[float]:
            timed = time_round(job)
            if is_busy(timed.waited_share):
                say(f"NOISY: {path.name} under {runtime} waited {timed.waited_share:.0%} of its time: {BUSY}")
            return list(timed.seconds[1])

        return seconds_of_a_round

    def of_peer() -> list[float]:
        words = module("benchmarks.reference.nncf_int8", "time", peer, side_px, threads, duration_s)
        seconds: list[float] = json.loads(run_process(words).out)
        return seconds

    sides = {label: own(*model) for label, model in models_of(study, onnx).items()} | {NNCF: of_peer}
    seconds_of_sides = in_turn(rounds, *(lambda _, side=side: side() for side in sides.values()))
    return dict(zip(sides, seconds_of_sides, strict=True))


def p50_ms(rounds: list[list[float]]) -> list[float]:
    """Return the median latency of each round."""
    return [1000 * float(np.median(seconds)) for seconds in rounds]


def figures_of(study: Study, timed: dict[str, list[list[float]]]) -> list[Figure]:
    """Return the ratios of the table of targets."""
    best_ms = p50_ms(timed[f"{BEST}, ONNX Runtime"])
    figures = []
    for label, target in ((FP32_EAGER, 15.0), (FP32_ONNX, 6.0), (NNCF, 1.0)):
        ratios = [a / b for a, b in zip(p50_ms(timed[label]), best_ms, strict=True)]
        detail = f"{np.median(p50_ms(timed[label])):.2f} and {np.median(best_ms):.2f} ms"
        figures.append(
            Figure(
                what=f"faster than {label}",
                value=float(np.median(ratios)),
                interval=mean_ratio_interval(ratios),
                target=target,
                detail=detail,
            )
        )
    sizes = [study.read_variant(name).model_bytes / 1e6 for name in (BASELINE, BEST)]
    detail = f"{sizes[0]:.2f} and {sizes[1]:.2f} MB"
    figures.append(
        Figure(what="smaller than the FP32 file", value=sizes[0] / sizes[1], interval=None, target=15.0, detail=detail)
    )
    return figures


def section(figures: list[Figure], timed: dict[str, list[list[float]]], folds: dict[str, Any], command: str) -> str:
    """Return the section of docs/results.md."""
    machine = describe()
    (row, *_), rounds = folds["rows"], len(next(iter(timed.values())))
    low, high = row["difference_interval"]
    per_fold = folds["folds"]
    lines = [
        "## Compression in figures",
        "",
        f"`{BEST}` of the first of five patient-grouped folds, one image at a time, {rounds} interleaved rounds, each "
        f"model and round in a fresh process, {available_threads()} threads. {machine['processor']}, "
        f"{machine['instructions']}; torch {machine['torch']}, onnxruntime {machine['onnxruntime']}.",
        "",
        "| the compressed variant is | median | 95 % over rounds | target | reached | from |",
        "|---|---:|---:|---:|---|---|",
        *(figure.line() for figure in figures),
        "",
        "| model | p50 ms | least and greatest round |",
        "|---|---:|---:|",
        *(
            f"| {label} | {np.median(ms):.2f} | {min(ms):.2f}–{max(ms):.2f} |"
            for label, ms in ((label, p50_ms(model_rounds)) for label, model_rounds in timed.items())
        ),
        "",
        "Accuracy on the test images, every fold trained, compressed and tested on its own: each image is tested once.",
        "",
        f"| fold | images | {BASELINE} | {BEST} | lost | won |",
        "|---|---:|---:|---:|---:|---:|",
        *(
            f"| {fold['fold']} | {fold['images']} | {fold['first']:.1%} | {fold['second']:.1%} | "
            f"{fold['lost']} | {fold['won']} |"
            for fold in per_fold
        ),
        f"| pooled | {row['images']} | {row['first']:.1%} | {row['second']:.1%} | {row['lost']} | {row['won']} |",
        "",
        f"{row['images']} images of {folds['patients']} patients. Difference {row['difference']:+.1%}, "
        f"95 % {low:+.1%} to {high:+.1%} ({row['method']}). {folds['verdict']}",
        "",
        "Measured with:",
        "",
        "```",
        command,
        "```",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Make missing variants, time the models, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True, help="folder of class folders")
    parser.add_argument("--weights", type=Path, required=True, help="initial weights, safetensors")
    parser.add_argument("--work", type=Path, required=True, help="folder for the study of folds, kept")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--duration", type=float, default=2.0, help="seconds of calls per model and round")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the table and the JSON go")
    options = parser.parse_args()
    if not RUNTIMES[OPENVINO].installed:
        raise SystemExit("OpenVINO is not installed: install this project with its openvino extra")
    root = options.work / "folds"
    make_folds(options.data, options.weights, root, options.folds)
    folds = run_process(chestx("compare", BASELINE, BEST, "--study", root, "--json")).json()
    study = Study(root / "fold-1")
    say("latencies")
    timed = time_models(study, options.rounds, options.duration)
    figures = figures_of(study, timed)
    words = ("--data", options.data.name, "--weights", options.weights.name, "--work", options.work.name)
    command = "python -m tools.benchmarks.compression " + shlex.join([*words, "--rounds", str(options.rounds)])
    document = {
        "command": command,
        "machine": describe(),
        "figures": jsonable(figures),
        "round_p50_ms": {label: p50_ms(rounds) for label, rounds in timed.items()},
        "folds": {key: folds[key] for key in ("verdict", "rows", "folds", "patients")},
    }
    write_atomic(options.docs / "compression.json", json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    text = section(figures, timed, folds, command)
    insert(options.docs / "results.md", "compression", text)
    print(text)


if __name__ == "__main__":
    main()
