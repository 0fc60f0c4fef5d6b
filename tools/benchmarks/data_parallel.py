"""Two processes compared with one: the training loss over 20 steps of the same global batch, in FP32.

    python -m tools.benchmarks.data_parallel --backbone resnet18 --learning-rates 1e-6,1e-4

Augmentation, dropout, weighted sampling and class weights are on; all sides draw the same random numbers. Images are
synthetic. A single process with another number of threads also sums in another order, so it shows the effect of
rounding alone.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from pathlib import Path

from chestx_cli.data.synthetic.sets import write_synthetic_set
from tools.harness.machine import describe
from tools.harness.processes import run_process, say
from tools.reliability.processes import TINY_ENV

# 64 of the images are trained on: four steps per epoch.
IMAGES, EPOCHS = 92, 5
BATCHNORM_OVER_BOTH = ("--processes", "2", "--sync-batchnorm")
# Threads per process and options of each side.
SIDES: dict[str, tuple[str, tuple[str, ...]]] = {
    "one process, one thread": ("1", ()),
    "one process, two threads": ("2", ()),
    "two processes, BatchNorm over both": ("1", BATCHNORM_OVER_BOTH),
    "two processes, BatchNorm over each": ("1", ("--processes", "2")),
}


def main() -> None:
    """Train each side and print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--backbone", default="resnet18")
    options.add_argument("--image-size", default="64")
    options.add_argument("--learning-rates", default="1e-6,1e-4")
    arguments = options.parse_args()
    print(f"| {arguments.backbone}, learning rate | side | loss of the steps 17 to 20 | largest relative difference |")
    print("|---|---|---:|---:|")
    with tempfile.TemporaryDirectory(prefix="chestx-parallel-") as work:
        study, data = Path(work) / "study", Path(work) / "data"
        write_synthetic_set(data, images=IMAGES, seed=1, size_px=128)
        run_process([*_chestx("split"), data, "--study", study, "--image-size", arguments.image_size], TINY_ENV)
        for rate in arguments.learning_rates.split(","):
            fit = ("--backbone", arguments.backbone, "--image-size", arguments.image_size, "--lr", rate)
            alone: list[float] = []
            for side, (threads, more) in SIDES.items():
                say(f"{rate}: {side}")
                words = [*_chestx("train"), "--study", study, *fit, "--weights", "none", "--precision", "fp32"]
                words += ["--batch-size", "16", "--epochs", EPOCHS, *more, "--force", "--json"]
                ended = run_process(words, {**TINY_ENV, "OMP_NUM_THREADS": threads})
                losses = [row["train_loss"] for row in json.loads(ended.out)["training"]["epochs"]]
                alone = alone or losses
                difference = max(abs(a - b) / b for a, b in zip(losses, alone, strict=True))
                print(f"| {rate} | {side} | {losses[-1]:.6f} | {difference:.1e} |", flush=True)
    machine = describe()
    print(f"\nMachine: {machine['processor']}, {machine['threads']} processors; torch {machine['torch']}.")
    print(f"Measured with `{shlex.join(['python', '-m', 'tools.benchmarks.data_parallel', *sys.argv[1:]])}`.")


def _chestx(command: str) -> list[object]:
    return [sys.executable, "-m", "chestx_cli", command]


if __name__ == "__main__":
    main()
