"""Profiles each command: the shares of its wall time, and its arithmetic compared with the machine's peak.

`python -m tools.benchmarks.profile --data DIR --weights FILE` runs the study under py-spy and writes the tables of
docs/performance.md. The main thread is sampled even while it waits, so that shares are of wall time.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.benchmarks.against_notebook import study_commands
from tools.benchmarks.performance import add_settings
from tools.benchmarks.workplace import Settings, Workplace
from tools.harness.documents import insert
from tools.harness.processes import module, run_process, say

SAMPLES_PER_S = 50
# A sample belongs to the first pattern that matches any frame of its stack, "function (file:line)".
KINDS: tuple[tuple[str, str], ...] = (
    ("imports", r"<frozen importlib"),
    ("decode", r"chestx_cli/data/(images/decoding|sources)\.py|_build \(.*pixel_cache\.py|_decoded_ahead|PIL/"),
    ("waiting for timed models", r"chestx_cli/inference/timing\.py"),
    (
        "export, quantize",
        r"chestx_cli/(inference/onnx_export|compression/quantization/methods)\.py|torch/onnx/|onnxruntime/quantization/",
    ),
    ("figures, report", r"matplotlib/|jinja2/|chestx_cli/reporting/"),
    ("backward", r"^backward \(|_engine_run_backward"),
    ("optimizer", r"torch/optim/"),
    ("data", r"chestx_cli/networks/augmentation\.py|^(grey|network_input|normalised|draw_order) \("),
    ("metrics, statistics", r"sklearn/|scipy/|statsmodels/|chestx_cli/evaluation/"),
    ("building networks", r"torch/nn/init\.py|^build_classifier \("),
    (
        "forward",
        r"^forward \(|torch/nn/modules/|onnxruntime/capi/|torch/fx/|concurrent/futures/"
        # The sweep computes in threads for which the main thread waits, hence the futures above.
        r"|chestx_cli/(compression/pruning/partial_forward|inference/runtimes|networks/batchnorm_folding)\.py",
    ),
    ("pruning", r"chestx_cli/compression/pruning/(unstructured|methods)\.py|torch/nn/utils/prune\.py|l1_masks"),
    (
        "files, hashes",
        r"chestx_cli/(core/(files|record)|study/|networks/weights/)|safetensors|pandas/",
    ),
)
START_AND_END = "interpreter"
REST = "rest"
ORDER = (START_AND_END, *(kind for kind, _ in KINDS), REST)


def kind_of(stack: Sequence[str]) -> str:
    """Return the kind of work that a stack (outermost frame first) shows."""
    for kind, pattern in KINDS:
        if any(re.search(pattern, frame) for frame in stack):
            return kind
    return REST


def shares_of(folded: str) -> dict[str, float]:
    """Return each kind's share of the main thread's samples, from lines `frame;frame;... count`."""
    counts: Counter[str] = Counter()
    stacks = [line.rpartition(" ")[::2] for line in folded.splitlines()]
    # A thread gets its name only after the interpreter has started, but has its number from the start.
    named = {stack.split(";")[0] for stack, _ in stacks if stack.split(";")[0].endswith("MainThread")}
    main_threads = named | {name.partition(":")[0] for name in named}
    for stack, count in stacks:
        thread, *frames = stack.split(";")
        if thread in main_threads:
            counts[kind_of(frames) if frames else START_AND_END] += int(count)
    total = counts.total()
    if not total:
        raise SystemExit("py-spy saw no sample of the main thread")
    return {kind: counts[kind] / total for kind in ORDER}


def profile(words: list[object], folder: Path) -> tuple[float, dict[str, float]]:
    """Run a command under py-spy; return its wall time and the share of each kind."""
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if spy is None:
        raise SystemExit("py-spy is not installed: it is in the bench extra")
    raw = folder / "stacks.txt"
    options = ["record", "--idle", "--threads", "--format", "raw", "--rate", SAMPLES_PER_S, "--output", raw, "--"]
    # Not the console script: py-spy cannot follow its shebang on every system.
    seconds = run_process([spy, *options, sys.executable, *words]).seconds
    return seconds, shares_of(raw.read_text(encoding="utf-8"))


def computed(place: Workplace, work: dict[str, Any]) -> dict[str, tuple[float, tuple[str, ...]]]:
    """Return the minimum number of operations of each command, and the kinds of work that compute them."""
    settings, parts = place.settings, work["images"]
    amounts = len(settings.amounts.split(","))
    forward = ("forward",)
    both = ("forward", "backward")
    # A backward pass computes the gradients of inputs and of weights: two products for each one of the forward pass.
    # Each multiply-accumulate is two operations.
    epoch = 2 * work["macs"] * (3 * parts["train"] + parts["val"])
    computed_by: dict[str, tuple[float, tuple[str, ...]]] = {
        "train": (epoch * settings.epochs, both),
        "prune_iterative": (3 * settings.finetune_epochs * epoch, both),
    }
    if not settings.layers:
        computed_by["sensitivity"] = (2 * parts["val"] * (work["macs"] + amounts * work["sweep_macs"]), forward)
    return computed_by


def tables(
    profiles: dict[str, tuple[float, dict[str, float]]],
    needed: dict[str, tuple[float, tuple[str, ...]]],
    peaks: dict[str, float],
    precisions: dict[str, str],
) -> str:
    """Return the tables as Markdown."""
    kinds = [kind for kind in ORDER if any(shares[kind] >= 0.005 for _, shares in profiles.values())]
    lines = [
        "Share of each command's wall time, sampled on the main thread; shares below 0.5 % are left out.",
        "",
        f"| command | seconds | {' | '.join(kinds)} |",
        f"|---|---:|{'---:|' * len(kinds)}",
    ]
    for name, (seconds, shares) in profiles.items():
        cells = [f"{shares[kind]:.0%}" if shares[kind] >= 0.005 else "" for kind in kinds]
        lines.append(f"| {name} | {seconds:.1f} | {' | '.join(cells)} |")
    lines += [
        "",
        "The network's arithmetic compared with the machine's limit, a large matrix product in the same precision: "
        "the operations that the command needs, divided by the time in which it computes them.",
        "",
        "| command | precision | 10⁹ operations | seconds | 10⁹ per second | limit | share |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, (operations, parts) in needed.items():
        seconds, shares = profiles[name]
        within = seconds * sum(shares[part] for part in parts)
        rate, limit = operations / within, peaks[precisions[name]]
        lines.append(
            f"| {name} | {precisions[name]} | {operations / 1e9:,.0f} | {within:.1f} | {rate / 1e9:,.0f} "
            f"| {limit / 1e9:,.0f} | {rate / limit:.0%} |"
        )
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    """Profile the study command by command and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_settings(parser)
    options = vars(parser.parse_args(words))
    docs, work = options.pop("docs"), options.pop("work")
    machine = run_process(module("harness.machine")).json()
    with tempfile.TemporaryDirectory(prefix="chestx-bench-") as temporary:
        place = Workplace(settings=Settings(work=work or Path(temporary), **options))
        place.work.mkdir(parents=True, exist_ok=True)
        study = place.fresh("profiled")
        profiles = {}
        for name, command in study_commands(place, study).items():
            say(f"profiling {name}")
            profiles[name] = profile(command, place.work)
        counted = run_process(module("benchmarks.multiplications", "--study", study)).json()
    peaks = machine["operations_per_s"]
    halves = "bf16" if "bf16" in peaks else "fp32"
    precisions = {"train": halves, "prune_iterative": halves, "sensitivity": "fp32"}
    text = tables(profiles, computed(place, counted), peaks, precisions)
    described = machine["machine"]
    text = f"{described['processor']}, {described['threads']} processors, {described['instructions']}.\n\n{text}"
    insert(docs / "performance.md", "profile", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
