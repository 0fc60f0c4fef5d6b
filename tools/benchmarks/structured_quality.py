"""Half of the MACs removed with the same fine-tuning: chestx's choices compared with Torch-Pruning's defaults.

Run with `python -m tools.benchmarks.structured_quality --data DATA --weights FILE`; it trains a ResNet50 baseline
unless `--study` names a study with one. Every arm prunes the same baseline to the same MACs and is fine-tuned with the
same recipe and seeds; losses are plain cross-entropy on the validation images, of the epoch that was kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.commands.train import train
from chestx_cli.compression.pruning.allocation import by_sensitivity
from chestx_cli.compression.pruning.channel_removal import Limits
from chestx_cli.compression.pruning.criteria import CRITERIA, usual_criterion
from chestx_cli.compression.pruning.layer_sensitivity import validation_outcome
from chestx_cli.compression.pruning.methods import Iterative, Structured
from chestx_cli.compression.pruning.structured import Cutting, prune_channels
from chestx_cli.core.machine import environment
from chestx_cli.core.progress import SilentReporter
from chestx_cli.core.record import jsonable
from chestx_cli.evaluation.statistics.outcome import Outcome
from chestx_cli.networks.backbones import output_layer
from chestx_cli.networks.devices import reproducible
from chestx_cli.networks.distillation import distilling
from chestx_cli.networks.layers import count_macs
from chestx_cli.networks.recipe import Recipe
from chestx_cli.networks.training import fit, recipe_of
from chestx_cli.networks.training_data import FitData, predict_logits, read_fit_data
from chestx_cli.networks.weights.serialization import load_network
from chestx_cli.records.sensitivity import GroupSensitivityRecord
from chestx_cli.records.variant import BASELINE, EpochRow
from chestx_cli.store.checkpoints import Checkpoints
from chestx_cli.store.directory import Study
from chestx_cli.store.documents import read_record
from tools.benchmarks.reference.torch_pruning_recipes import at_macs, pruner_of

if TYPE_CHECKING:
    from torch import nn

    from chestx_cli.records.variant import VariantRecord

DEFAULTS = Structured()
# Every arm is fine-tuned as in the original study, without a teacher.
STUDYS = Iterative()


@dataclass(frozen=True, kw_only=True)
class Result:
    """One arm with one seed: validation results before and after fine-tuning."""

    arm: str
    seed: int
    macs_removed: float
    oneshot: Outcome
    finetuned: Outcome | None
    duration_s: float


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Shared by all arms: the study, its baseline and images, and the share of MACs to remove."""

    study: Study
    record: VariantRecord
    data: FitData
    amount: float
    epochs: int

    def recipe(self, seed: int) -> Recipe:
        """Return the fine-tuning recipe shared by all arms, with this seed."""
        return recipe_of(
            epochs=self.epochs,
            batch_size=STUDYS.batch_size,
            lr=STUDYS.lr,
            balance=self.record.balance,
            loss=self.record.loss,
            device=STUDYS.device,
            precision=STUDYS.precision,
            compiled=STUDYS.compile,
            seed=seed,
        )

    def network(self) -> nn.Module:
        """Return the baseline, loaded from its file."""
        return load_network(self.study, self.record)


# Maps a bench and a seed to the pruned network and its fine-tuning data.
Arm = Callable[[Bench, int], "tuple[nn.Module, FitData]"]


def torch_pruning_defaults(bench: Bench, _seed: int) -> tuple[nn.Module, FitData]:
    """Return the network pruned by Torch-Pruning's pruner with its defaults, at the ratio that reaches the MACs."""
    import torch_pruning

    side_px, importance = bench.data.preprocessing.image_size_px, torch_pruning.importance.MagnitudeImportance()

    def prune(network: nn.Module, ratio: float) -> None:
        pruner_of(network, side_px, "MagnitudePruner", importance, pruning_ratio=ratio).step()

    return at_macs(bench.network(), side_px, 1 - bench.amount, prune), bench.data


def chestx_arm(*, criterion: str | None = None, distill: bool = False, guided: bool = False) -> Arm:
    """Return the network pruned as by the command, with its default limits."""

    def arm(bench: Bench, seed: int) -> tuple[nn.Module, FitData]:
        recipe = bench.recipe(seed)
        path = bench.study.variant(BASELINE) / "sensitivity.structured.json"
        cutting = Cutting(
            criterion=criterion or usual_criterion(bench.network()),
            limits=Limits(round_to=DEFAULTS.round_to, floor=DEFAULTS.floor),
            kept_layer=output_layer(bench.network()),
            device=recipe.device,
            precision=recipe.precision,
            seed=seed,
            allocator=by_sensitivity(read_record(GroupSensitivityRecord, path)) if guided else None,
        )
        network, _ = prune_channels(
            bench.network(),
            bench.data,
            cutting,
            amount=bench.amount,
            steps=1,
            finetune=None,
        )
        if not distill:
            return network, bench.data
        mix_loss = distilling(bench.network(), recipe, temperature=4.0, weight=0.5)
        return network, dataclasses.replace(bench.data, mix_loss=mix_loss)

    return arm


ARMS: dict[str, Arm] = {
    "torch-pruning defaults": torch_pruning_defaults,
    "structured": chestx_arm(),
    "structured --distill": chestx_arm(distill=True),
    "guided": chestx_arm(guided=True),
    **{f"structured --criterion {name}": chestx_arm(criterion=name) for name in CRITERIA},
}


def validate(network: nn.Module, data: FitData) -> Outcome:
    """Return the quality of a network on the validation images, in FP32."""
    network.eval()
    return validation_outcome(
        predict_logits(network, data, data.split.indices("val"), device="cpu", precision="fp32"), data
    )


def measure(bench: Bench, name: str, seed: int) -> Result:
    """Prune, measure, fine-tune and measure again."""
    started_s = time.perf_counter()
    side = bench.data.preprocessing.image_size_px
    recipe = bench.recipe(seed)
    checkpoints = Checkpoints(folder=Path(tempfile.mkdtemp(prefix="chestx-arm-")), identity={}, every_steps=None)
    with reproducible(seed):
        network, data = ARMS[name](bench, seed)
        removed = 1 - count_macs(network, side) / bench.record.macs
        before = validate(network, data)
        rows: list[EpochRow] = []
        if bench.epochs:
            rows = fit(network, data, recipe, SilentReporter(), stage="arm", checkpoints=checkpoints)
        after = validate(network, data) if rows else None
    checkpoints.clear()
    return Result(
        arm=name,
        seed=seed,
        macs_removed=removed,
        oneshot=before,
        finetuned=after,
        duration_s=round(time.perf_counter() - started_s, 1),
    )


def open_bench(root: Path, *, amount: float, epochs: int) -> Bench:
    """Return the bench of a study with a baseline."""
    study = Study(root)
    split = study.read_split()
    record = study.read_parent(BASELINE, split)
    data = read_fit_data(study, split, record.preprocessing, SilentReporter())
    return Bench(study=study, record=record, data=data, amount=amount, epochs=epochs)


def main() -> None:
    """Measure the chosen arms, print a line for each, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, help="folder of images, to train a baseline")
    parser.add_argument("--weights", type=Path, help="weights to start the baseline from")
    parser.add_argument("--study", type=Path, help="study with a baseline; one is trained if it is missing")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS)[:2])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--amount", type=float, default=DEFAULTS.amount)
    parser.add_argument("--epochs", type=int, default=STUDYS.finetune_epochs)
    parser.add_argument("--out", type=Path, default=Path("structured_quality.json"))
    arguments = parser.parse_args()
    root = arguments.study or Path(tempfile.mkdtemp(prefix="chestx-structured-")) / "study"
    if not (Study(root).variant(BASELINE) / "variant.json").exists():
        train(data=arguments.data, study=root, weights=str(arguments.weights))
    bench = open_bench(root, amount=arguments.amount, epochs=arguments.epochs)
    results: list[Result] = []
    print(f"{'arm':30} seed  MACs removed   loss/accuracy/AUROC one-shot   and fine-tuned")
    for seed in arguments.seeds:
        for name in arguments.arms:
            result = measure(bench, name, seed)
            results.append(result)
            oneshot, tuned = (
                f"{q.loss:.4f} {q.accuracy:.3f} {q.auroc:.3f}" if q else "" for q in (result.oneshot, result.finetuned)
            )
            print(f"{name:30} {seed:4} {result.macs_removed:13.1%}   {oneshot:28} {tuned}", flush=True)
            document = {"amount": bench.amount, "epochs": bench.epochs, "environment": environment()}
            document["results"] = jsonable(results)
            arguments.out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
