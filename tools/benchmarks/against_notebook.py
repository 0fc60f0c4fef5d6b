"""The whole study, training and sensitivity sweep compared with the notebook; training also with Lightning."""

from __future__ import annotations

import importlib.util
import json
import shutil
import statistics
from pathlib import Path

from tools.benchmarks.results import Row, Step, row_of
from tools.benchmarks.workplace import Workplace
from tools.harness.processes import Ended, chestx, in_turn, module, ratio_of, run_process, say

Seconds = dict[str, float]

STUDY_TARGET = TRAINING_TARGET = 3.5
SENSITIVITY_TARGET = 5.0
LIGHTNING = "pytorch_lightning"


def study_commands(place: Workplace, study: Path) -> dict[str, list[object]]:
    """Return the commands of the study, keyed by the notebook's section names."""
    given = place.settings
    at = ("--study", study)
    layers = ("--layers", given.layers) if given.layers else ()
    # The notebook does not re-estimate BatchNorm statistics.
    plain = ("--no-recalibrate",)
    fine = ("--finetune-epochs", given.finetune_epochs, "--batch-size", given.batch_size)
    # The runtimes of the default installation: OpenVINO is an extra, installed here only for other measurements.
    timing = ("--runtimes", "pytorch,onnxruntime", "--rounds", given.bench_rounds, "--duration", given.bench_seconds)
    return {
        "split": chestx("split", place.data, *at),
        "train": place.training(study),
        "sensitivity": chestx("sensitivity", *at, "--amounts", given.amounts, *layers),
        "prune_oneshot": chestx("prune", *at, "--method", "oneshot", "--amount", 0.5, *plain),
        "prune_iterative": chestx("prune", *at, "--method", "iterative", "--steps", 3, "--amount", 0.2, *plain, *fine),
        "quantize": chestx("quantize", *at, "--method", "dynamic"),
        "evaluate": chestx("evaluate", *at),
        "benchmark": chestx("benchmark", *at, "--device", "cpu", *timing),
        "report": chestx("report", *at),
    }


def measure_study(place: Workplace, wanted: set[str]) -> tuple[list[Row], list[Step]]:
    """Return the rows of the whole study and of the `wanted` steps, and the seconds of each step."""
    peaks: dict[str, list[float]] = {"chestx": [], "notebook": []}

    def own(_index: int) -> Seconds:
        # The last round's study is kept for other measurements.
        study = place.fresh("study")
        steps: Seconds = {}
        for name, words in study_commands(place, study).items():
            say(f"chestx: {name}")
            finished = run_process(words)
            steps[name] = finished.seconds
            peaks["chestx"].append(finished.peak_bytes)
        return steps

    def other(_index: int) -> Seconds:
        say("notebook: all sections")
        finished, steps = run_notebook(place)
        peaks["notebook"].append(finished.peak_bytes)
        return steps

    rounds = place.settings.rounds
    ours, theirs = in_turn(rounds, own, other)
    memory = ", ".join(f"{name} {max(values) / 2**20:,.0f} MiB" for name, values in peaks.items())
    totals = [sum(steps.values()) for steps in theirs], [sum(steps.values()) for steps in ours]
    rows = [
        row_of(
            ratio_of(*totals),
            rounds,
            group="study",
            what="whole study against the notebook",
            unit="×",
            target=STUDY_TARGET,
            detail=f"{_medians(*totals)}; largest process: {memory}",
        )
    ]
    if "training" in wanted:
        rows += [_training_row([steps["train"] for steps in theirs], [steps["train"] for steps in ours])]
        rows += _lightning(place, [steps["train"] for steps in ours])
    if "sensitivity" in wanted:
        rows += [_sensitivity_row([s["sensitivity"] for s in theirs], [s["sensitivity"] for s in ours])]
    steps = [
        Step(
            step=name,
            chestx_s=statistics.median(found[name] for found in ours),
            notebook_s=statistics.median(found[name] for found in theirs),
        )
        for name in ours[0]
    ]
    return rows, steps


def measure_training(place: Workplace) -> list[Row]:
    """Return the rows of training alone, against the notebook and Lightning."""

    def own(_index: int) -> float:
        say("chestx: train")
        study = place.fresh("training")
        run_process(study_commands(place, study)["split"])
        return run_process(place.training(study)).seconds

    def notebook(_index: int) -> float:
        say("notebook: train")
        return run_notebook(place, "split,train")[1]["train"]

    ours, theirs = in_turn(place.settings.rounds, own, notebook)
    return [_training_row(theirs, ours), *_lightning(place, ours)]


def measure_sensitivity(place: Workplace) -> list[Row]:
    """Return the row of the sensitivity sweep alone, against the notebook, which first trains for one epoch."""
    study = place.study

    def own(_index: int) -> float:
        say("chestx: sensitivity")
        return run_process(study_commands(place, study)["sensitivity"]).seconds

    def other(_index: int) -> float:
        say("notebook: sensitivity")
        return run_notebook(place, "split,train,sensitivity", "--epochs", 1)[1]["sensitivity"]

    ours, theirs = in_turn(place.settings.rounds, own, other)
    return [_sensitivity_row(theirs, ours)]


def run_notebook(place: Workplace, steps: str = "", *more: object) -> tuple[Ended, Seconds]:
    """Return the seconds of each section of the notebook; its imports count as training."""
    given = place.settings
    out = place.fresh("notebook")
    words = [*place.peer, "--out", out, "--amounts", given.amounts, "--layers", given.layers]
    words += ["--finetune-epochs", given.finetune_epochs, "--batch-size", given.batch_size]
    words += ["--bench-rounds", given.bench_rounds, "--bench-seconds", given.bench_seconds]
    chosen = ["--steps", steps] if steps else []
    finished = run_process(module("benchmarks.reference.notebook", *words, *chosen, *more))
    lines = [json.loads(line) for line in finished.out.splitlines()]
    seconds = {line["step"]: line["seconds"] for line in lines}
    seconds["train"] += seconds.pop("imports")
    return finished, seconds


def _training_row(theirs: list[float], ours: list[float]) -> Row:
    return row_of(
        ratio_of(theirs, ours),
        len(ours),
        group="training",
        what="training against the notebook",
        unit="×",
        target=TRAINING_TARGET,
        detail=_medians(theirs, ours),
    )


def _sensitivity_row(theirs: list[float], ours: list[float]) -> Row:
    return row_of(
        ratio_of(theirs, ours),
        len(ours),
        group="sensitivity",
        what="sensitivity against the notebook",
        unit="×",
        target=SENSITIVITY_TARGET,
        detail=_medians(theirs, ours),
    )


def _lightning(place: Workplace, ours: list[float]) -> list[Row]:
    """Return the row of training against Lightning, one run per value of `ours`; empty if it is not installed."""
    if importlib.util.find_spec(LIGHTNING) is None:
        return []
    theirs = []
    for _ in ours:
        say("Lightning: train")
        out = place.fresh("lightning")
        words = [*place.peer, "--out", out, "--batch-size", place.settings.batch_size]
        theirs.append(run_process(module("benchmarks.reference.lightning_loop", *words)).seconds)
        shutil.rmtree(out, ignore_errors=True)
    return [
        row_of(
            ratio_of(theirs, ours),
            len(ours),
            group="training",
            what="training against Lightning",
            unit="×",
            detail=_medians(theirs, ours, "Lightning"),
        )
    ]


def _medians(theirs: list[float], ours: list[float], peer: str = "notebook") -> str:
    return f"chestx {statistics.median(ours):.1f} s, {peer} {statistics.median(theirs):.1f} s"
