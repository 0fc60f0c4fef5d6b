"""Benchmarks of single commands: start-up, report, large images, growth with the data, decoding, bf16."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from tools.benchmarks.results import Row, row_of
from tools.benchmarks.workplace import Workplace, draw_set
from tools.harness.processes import Ended, chestx, in_turn, module, ratio_of, run_process, say, spread_of

STARTUPS: tuple[tuple[str, tuple[str, ...], float | None], ...] = (
    ("chestx --version", ("--version",), 0.15),
    ("chestx --help", ("--help",), 0.4),
    ("chestx train --help", ("train", "--help"), 0.7),
    ("completion of a command's name", (), None),
)
COMPLETION = {"_CHESTX_COMPLETE": "complete_bash", "COMP_WORDS": "chestx tr", "COMP_CWORD": "1"}
REPORT_TARGET_S = 5.0
CEILING_TARGET = 0.95
EVALUATE_TARGET = 4.0
GROWTH_TARGET = 10.5
GROWTH_NETWORK = ("--backbone", "resnet18", "--weights", "none", "--image-size", 64)
GROWTH_SIZE_PX = 64
FEWEST_IMAGES = 40


def measure_startup(place: Workplace) -> list[Row]:
    """Return the wall time of commands that only print something; the first run, which fills caches, is not counted."""
    runs = place.settings.startup_runs
    sides = [
        lambda _index, words=words: run_process(chestx(*words), env=None if words else COMPLETION).seconds
        for _, words, _ in STARTUPS
    ]
    say("start-up")
    seconds_of_sides = in_turn(runs + 1, *sides)
    return [
        row_of(spread_of(seconds[1:]), runs, group="startup", what=what, unit="s", target=target, higher=False)
        for (what, _, target), seconds in zip(STARTUPS, seconds_of_sides, strict=True)
    ]


def measure_report(place: Workplace) -> list[Row]:
    """Return the wall time of `chestx report` on a study with many variants, evaluated and timed."""
    settings = place.settings
    study = place.copied_study("report")
    at = ("--study", study)
    variants = study / "variants"
    layers = ("--layers", settings.layers) if settings.layers else ()
    say("preparing the variants to report")
    run_process(chestx("sensitivity", *at, "--amounts", settings.amounts, *layers))
    run_process(chestx("quantize", *at, "--method", "dynamic"))
    for percent in range(5, 100):
        if len(list(variants.iterdir())) >= settings.variants:
            break
        run_process(chestx("prune", *at, "--amount", percent / 100))
    run_process(chestx("evaluate", *at))
    run_process(chestx("benchmark", *at, "--rounds", 1, "--duration", min(0.1, settings.bench_seconds)))
    say("chestx report")
    seconds = [run_process(chestx("report", *at)).seconds for _ in range(settings.rounds)]
    count = len(list(variants.iterdir()))
    return [
        row_of(
            spread_of(seconds),
            settings.rounds,
            group="report",
            what=f"chestx report, {count} variants",
            unit="s",
            target=REPORT_TARGET_S,
            higher=False,
        )
    ]


def measure_ceiling(place: Workplace) -> list[Row]:
    """Return the throughput of the training loop as a share of bare steps on one batch in memory."""
    settings = place.settings
    say("training loop against bare steps")
    words = ["--study", place.study, "--backbone", settings.backbone, "--image-size", settings.image_size]
    words += ["--batch-size", settings.batch_size, "--rounds", settings.rounds]
    rates = run_process(module("benchmarks.ceiling", *words)).json()
    loop, bare = rates["loop"], rates["bare"]
    return [
        row_of(
            ratio_of(loop, bare),
            settings.rounds,
            group="ceiling",
            what="training throughput, share of the ceiling",
            unit="%",
            target=CEILING_TARGET,
            detail=f"{statistics.median(loop):.2f} of {statistics.median(bare):.2f} images/s, {rates['precision']}",
        )
    ]


def measure_evaluate(place: Workplace) -> list[Row]:
    """Return the time of evaluating an INT8 variant on large images against a script, and its memory at two sizes."""
    settings = place.settings
    study = place.copied_study("evaluate")
    if not (study / "variants" / settings.variant).exists():
        method = settings.variant.removesuffix("-int8")
        run_process(chestx("quantize", "--study", study, "--method", method, "--name", settings.variant))
    large, small = (
        place.large_set(settings.large_images),
        place.large_set(max(FEWEST_IMAGES, settings.large_images // 10)),
    )
    model = study / "variants" / "baseline" / "model.safetensors"

    def own(data: Path) -> Ended:
        say(f"chestx evaluate: {data.name}")
        words = ("evaluate", settings.variant, "--study", study, "--baseline", settings.variant)
        # The large images are made from the study's own images, so the duplicate search would report leakage.
        return run_process(chestx(*words, "--data", data, "--name", "external", "--allow-leakage"))

    def script(_index: int) -> Ended:
        say("script: torchvision decoding, eager FP32")
        network = ("--backbone", settings.backbone, "--image-size", settings.image_size)
        words = ("--data", large, "--model", model, *network)
        return run_process(module("benchmarks.reference.external", *words))

    ours, theirs = in_turn(settings.rounds, lambda _index: own(large), script)
    few = own(small)
    seconds = [ended.seconds for ended in theirs], [ended.seconds for ended in ours]
    peaks = [ended.peak_bytes / 2**20 for ended in ours]
    rate = settings.large_images / statistics.median(seconds[1])
    return [
        row_of(
            ratio_of(*seconds),
            settings.rounds,
            group="evaluate",
            what=f"evaluate {settings.variant}, {settings.large_images:,} images of 1024², against a script",
            unit="×",
            target=EVALUATE_TARGET,
            detail=f"chestx {statistics.median(seconds[1]):.1f} s ({rate:.1f} images/s), script "
            f"{statistics.median(seconds[0]):.1f} s",
        ),
        row_of(
            spread_of(peaks),
            settings.rounds,
            group="evaluate",
            what="peak memory of that evaluation",
            unit="MiB",
            higher=False,
            detail=f"{few.peak_bytes / 2**20:,.0f} MiB for a tenth of the images; the script's largest process "
            f"{max(ended.peak_bytes for ended in theirs) / 2**20:,.0f} MiB",
        ),
    ]


def measure_growth(place: Workplace) -> list[Row]:
    """Return the cost of ten times as many images in split, a training epoch and evaluate.

    For split and evaluate also without the fixed cost, measured on a few images, which would hide steeper growth.
    """
    settings = place.settings
    sizes = (FEWEST_IMAGES, settings.growth_images, 10 * settings.growth_images)
    sets = [draw_set(place.work / f"grown-{size}", size, GROWTH_SIZE_PX) for size in sizes]

    def once(data: Path) -> dict[str, float]:
        say(f"growth: {data.name}")
        study = place.fresh("growth")
        at = ("--study", study)
        split = run_process(chestx("split", data, *at))
        trained = run_process(chestx("train", *at, *GROWTH_NETWORK, "--epochs", 1, "--json"))
        evaluate = run_process(chestx("evaluate", *at))
        epoch_s = trained.json()["training"]["epochs"][0]["duration_s"]
        return {"split": split.seconds, "train epoch": epoch_s, "evaluate": evaluate.seconds}

    few, one, ten = in_turn(settings.rounds, *(lambda _index, data=data: once(data) for data in sets))
    rows = []
    for name in one[0]:
        base, tenfold = [seconds[name] for seconds in one], [seconds[name] for seconds in ten]
        fixed = 0.0 if name == "train epoch" else statistics.median(seconds[name] for seconds in few)
        detail = f"{statistics.median(base):.2f} s and {statistics.median(tenfold):.2f} s, resnet18 at 64 px"
        if fixed and statistics.median(base) > fixed:
            images = (sizes[2] - sizes[0]) / (sizes[1] - sizes[0])
            net = (statistics.median(tenfold) - fixed) / (statistics.median(base) - fixed)
            detail += f"; above the {fixed:.2f} s for {sizes[0]} images {net:.1f}× for {images:.1f}× the images"
        rows.append(
            row_of(
                ratio_of(tenfold, base),
                settings.rounds,
                group="growth",
                what=f"{name}: {sizes[2]:,} against {sizes[1]:,} images",
                unit="×",
                target=GROWTH_TARGET,
                higher=False,
                detail=detail,
            )
        )
    return rows


def measure_decode(place: Workplace) -> list[Row]:
    """Return the number of image files that commands open once the pixels are cached."""
    say("opened images")
    study = place.copied_study("decode")
    network = f"backbone={place.settings.backbone}", f"image_size={place.settings.image_size}"
    layers = place.settings.layers or "conv1"
    words = ("--study", study, "--layers", layers, *network, f"weights={place.weights[1]}")
    counts = run_process(module("benchmarks.decoding", *words)).json()
    total = float(sum(counts.values()))
    return [
        Row(
            group="decode",
            what="image files opened once cached",
            unit="",
            value=total,
            low=total,
            high=total,
            rounds=1,
            target=0.0,
            higher=False,
            detail=", ".join(f"{name} {count}" for name, count in counts.items()),
        )
    ]


def measure_bf16(place: Workplace) -> list[Row]:
    """Return by seed the lowest validation loss of training in bf16 minus that in FP32."""
    settings = place.settings
    study = place.copied_study("bf16")

    def lowest_loss(seed: int, precision: str) -> float:
        say(f"chestx train --precision {precision} --seed {seed}")
        words = ["train", "--study", study, "--name", f"{precision}-{seed}", *place.network, "--seed", seed]
        words += ["--epochs", settings.epochs, "--batch-size", settings.batch_size, "--precision", precision, "--json"]
        return float(run_process(chestx(*words)).json()["training"]["best_val_loss"])

    halves, wholes = in_turn(
        settings.seeds, lambda index: lowest_loss(index + 1, "bf16"), lambda index: lowest_loss(index + 1, "fp32")
    )
    from scipy import stats

    differences = [half - whole for half, whole in zip(halves, wholes, strict=True)]
    interval = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    shown = [" ".join(f"{value:.4f}" for value in values) for values in (halves, wholes)]
    return [
        Row(
            group="bf16",
            what=f"validation loss, bf16 less FP32, mean of {settings.seeds} seeds",
            unit="",
            value=statistics.mean(differences),
            low=min(differences),
            high=max(differences),
            rounds=settings.seeds,
            higher=False,
            detail=f"95 % interval {interval.low:.4f} to {interval.high:.4f} (paired t); bf16 {shown[0]}; "
            f"FP32 {shown[1]}",
        )
    ]


def bf16_is_native() -> bool:
    """Return whether the processor supports bf16 natively; checked in a separate process to keep this one small."""
    code = "from chestx_cli.networks.devices import resolve_precision; print(resolve_precision('auto', 'cpu'))"
    return run_process([sys.executable, "-c", code]).out.strip() == "bf16"
