"""Two processes against one: the training loss after 20 steps of the same global batch, in FP32.

    python -m tools.benchmarks.data_parallel --backbone resnet18

Augmentation, dropout, weighted drawing and class weights are on: both sides draw the same. Images are synthetic.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from pathlib import Path

from chestx_cli.data.synthetic import write_synthetic_set
from tools.harness.machine import describe
from tools.harness.processes import run_process, say

IMAGES, EPOCHS, STEPS_PER_EPOCH = 92, 5, 4
TOLERANCE = 1e-4
SIDES = {
    "one process": (),
    "two, BatchNorm over both": ("--processes", "2", "--sync-batchnorm"),
    "two, BatchNorm over each": ("--processes", "2"),
}


def main() -> None:
    """Train on each side and print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--backbone", default="resnet18")
    options.add_argument("--image-size", default="64")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="chestx-parallel-") as work:
        study = Path(work) / "study"
        write_synthetic_set(Path(work) / "data", images=IMAGES, seed=1, size_px=128)
        base = [sys.executable, "-m", "chestx_cli"]
        run_process([*base, "split", Path(work) / "data", "--study", study, "--image-size", given.image_size])
        losses: dict[str, list[float]] = {}
        for number, (side, more) in enumerate(SIDES.items()):
            say(side)
            fit = ("--backbone", given.backbone, "--weights", "none", "--image-size", given.image_size)
            words = (*fit, "--precision", "fp32", "--batch-size", "16", "--epochs", EPOCHS, *more)
            ended = run_process([*base, "train", "--study", study, "--name", f"side-{number}", *words, "--json"])
            losses[side] = [row["train_loss"] for row in json.loads(ended.out)["training"]["epochs"]]
    machine = describe()
    steps = [STEPS_PER_EPOCH * (epoch + 1) for epoch in range(EPOCHS)]
    print(f"| training loss of the steps up to | {' | '.join(map(str, steps))} | largest relative difference |")
    print(f"|---|{'---:|' * (EPOCHS + 1)}")
    alone = losses["one process"]
    for side, found in losses.items():
        difference = max(abs(a - b) / b for a, b in zip(found, alone, strict=True))
        print(f"| {side} | {' | '.join(f'{loss:.6f}' for loss in found)} | {difference:.1e} |")
    print(f"\nMachine: {machine['processor']}, {machine['threads']} processors; torch {machine['torch']}.")
    print(f"Measured with `{shlex.join(['python', '-m', 'tools.benchmarks.data_parallel', *sys.argv[1:]])}`.")
    both = losses["two, BatchNorm over both"]
    if any(abs(a - b) > TOLERANCE * b for a, b in zip(both, alone, strict=True)):
        raise SystemExit(f"two processes differ from one by more than {TOLERANCE:g}")


if __name__ == "__main__":
    main()
