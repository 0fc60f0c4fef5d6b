"""Compares the estimate of a training's memory with its measured peak.

    python -m tools.benchmarks.memory --networks resnet18,tiny --batch-sizes 8,32

Each training is one epoch on synthetic images in its own process; the peak is the kernel's.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from chestx_cli.data.synthetic.sets import write_synthetic_set
from chestx_cli.networks.devices import resolve_precision
from chestx_cli.networks.memory import training_bytes
from tools.harness.machine import describe
from tools.harness.processes import run_process, say
from tools.reliability.processes import PLUGINS, TINY_ENV

# Of these, 70 are trained on: two whole batches of 32.
IMAGES = 100


def main(words: Sequence[str] | None = None) -> None:
    """Train each network once and print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--networks", default="resnet18,tiny")
    options.add_argument("--batch-sizes", default="32")
    options.add_argument("--image-sizes", default="224")
    options.add_argument("--precisions", default="fp32,auto")
    arguments = options.parse_args(words)
    sys.path.insert(0, str(PLUGINS))
    print("| network | pixels | batch | precision | estimate, GB | measured peak, GB | estimate / peak |")
    print("|---|---:|---:|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory(prefix="chestx-memory-") as work:
        data = Path(work) / "data"
        write_synthetic_set(data, images=IMAGES, seed=1, size_px=256)
        for side_px in arguments.image_sizes.split(","):
            study = Path(work) / f"study-{side_px}"
            run_process([*_chestx("split"), data, "--study", study, "--image-size", side_px], TINY_ENV)
            for network in arguments.networks.split(","):
                for batch_size in arguments.batch_sizes.split(","):
                    for precision in arguments.precisions.split(","):
                        _measure(study, network, int(side_px), int(batch_size), precision)
    machine = describe()
    print(f"\nMachine: {machine['processor']}, {machine['threads']} processors, {machine['memory']}; torch ", end="")
    print(f"{machine['torch']}. Measured with")
    print(f"`{shlex.join(['python', '-m', 'tools.benchmarks.memory', *(sys.argv[1:] if words is None else words)])}`.")


def _measure(study: Path, network: str, side_px: int, batch_size: int, precision: str) -> None:
    say(f"{network}, {side_px} px, {batch_size} images, {precision}")
    fit = ("--backbone", network, "--weights", "none", "--image-size", side_px, "--batch-size", batch_size)
    words = [*_chestx("train"), "--study", study, *fit, "--epochs", 1, "--precision", precision, "--force"]
    # The number of threads of a cell, since each thread has its own buffers.
    environment = {name: value for name, value in TINY_ENV.items() if name != "OMP_NUM_THREADS"}
    peak = run_process(words, environment).peak_bytes
    estimate = training_bytes(network, side_px, batch_size, resolve_precision(precision, "cpu"))
    print(
        f"| {network} | {side_px} | {batch_size} | {precision} | {estimate / 1e9:.2f} | {peak / 1e9:.2f} | "
        f"{estimate / peak:.2f} |",
        flush=True,
    )


def _chestx(command: str) -> list[object]:
    return [sys.executable, "-m", "chestx_cli", command]


if __name__ == "__main__":
    main()
