"""The training loop compared with bare training steps of the same network on one synthetic batch in memory.

Both alternate in one process. A round is one epoch of `chestx_cli.networks.training.fit` and the same number of bare
steps; on both sides only full batches count, timed from one step's end to the next. Prints images per second of every
round. `--operations` instead prints in which operations the bare steps spend their time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.core.progress import Advance, SilentReporter
from chestx_cli.networks.backbones import build_classifier
from chestx_cli.networks.devices import autocast, move_back, move_to, reproducible, resolve_device, resolve_precision
from chestx_cli.networks.losses import LOSSES
from chestx_cli.networks.recipe import Recipe
from chestx_cli.networks.training import fit
from chestx_cli.networks.training_data import read_fit_data
from chestx_cli.records.preprocessing import Preprocessing
from chestx_cli.store.checkpoints import Checkpoints
from chestx_cli.store.directory import Study

if TYPE_CHECKING:
    from torch import nn

    from chestx_cli.networks.training_data import FitData


class StepClock(SilentReporter):
    """Records the time at the end of every step of a fit."""

    def __init__(self) -> None:
        self.ends_s: list[float] = []

    @contextmanager
    def progress(self, label: str, total: int | None) -> Iterator[Advance]:  # noqa: ARG002 - the protocol's names
        """Record the time whenever the loop reports a finished step."""
        yield lambda steps=1: self.ends_s.append(time.perf_counter()) if steps else None


def rate_of(ends_s: list[float], batch_size: int) -> float:
    """Return the images per second of steps that ended at these times."""
    return batch_size * (len(ends_s) - 1) / (ends_s[-1] - ends_s[0])


def loop_rate(network: nn.Module, data: FitData, recipe: Recipe) -> float:
    """Return the images per second of one epoch's full batches."""
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(folder=Path(folder) / "ceiling", identity={}, every_steps=None)
        fit(network, data, recipe, clock, stage="train", checkpoints=checkpoints)
    full = len(data.split.indices("train")) // recipe.batch_size
    return rate_of(clock.ends_s[:full], recipe.batch_size)


def bare_rate(network: nn.Module, image_size_px: int, recipe: Recipe, steps: int) -> float:
    """Return the images per second of training steps on one batch of network input in memory."""
    import torch

    move_to(network, recipe.device)
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate, fused=True)
    shape = (recipe.batch_size, 3, image_size_px, image_size_px)
    inputs = torch.randn(shape, device=recipe.device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(recipe.batch_size, device=recipe.device) % 2
    ends_s = []
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        with autocast(recipe.device, recipe.precision):
            logits = network(inputs)
        loss = LOSSES[recipe.loss](logits.float(), labels, None)
        loss.backward()
        optimizer.step()
        ends_s.append(time.perf_counter())
    move_back(network)
    return rate_of(ends_s, recipe.batch_size)


def operation_shares(network: nn.Module, image_size_px: int, recipe: Recipe, steps: int) -> dict[str, float]:
    """Return the share of the time of bare training steps that each operation takes without those that it calls."""
    from torch.profiler import ProfilerActivity, profile

    # Warm-up: the first steps select and prepare kernels.
    bare_rate(network, image_size_px, recipe, 2)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        bare_rate(network, image_size_px, recipe, steps)
    times = {one.key: one.self_cpu_time_total for one in profiler.key_averages()}
    total = sum(times.values())
    return {name: times[name] / total for name in sorted(times, key=lambda name: -times[name])}


def main() -> None:
    """Measure both, alternating."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--operations", type=int, metavar="STEPS", help="print the share of each operation in so many")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    study = Study(options.study)
    split = study.read_split()
    data = read_fit_data(study, split, Preprocessing(image_size_px=options.image_size), SilentReporter())
    device = resolve_device("auto")
    recipe = Recipe(
        epochs=1,
        batch_size=options.batch_size,
        learning_rate=1e-4,
        balance="both",
        loss="ce",
        device=device,
        precision=resolve_precision(options.precision, device),
        compiled=False,
        seed=42,
    )
    steps = len(split.indices("train")) // recipe.batch_size
    if steps < 3:
        raise SystemExit(f"{steps} full batches of {recipe.batch_size} are too few to time: lower --batch-size")
    loop, bare = [], []
    with reproducible(recipe.seed):
        network = build_classifier(options.backbone, len(split.classes))
        if options.operations:
            shares = operation_shares(network, options.image_size, recipe, options.operations)
            print(json.dumps({"precision": recipe.precision, "operations": shares}))
            return
        # Warm-up: the first steps select and prepare kernels.
        bare_rate(network, options.image_size, recipe, 3)
        for _ in range(options.rounds):
            loop.append(loop_rate(network, data, recipe))
            bare.append(bare_rate(network, options.image_size, recipe, steps))
    print(json.dumps({"precision": recipe.precision, "loop": loop, "bare": bare}))


if __name__ == "__main__":
    main()
