"""Pruning to the same MACs with the same number of epochs: chestx compared with the best public recipes of other tools.

    python -m tools.benchmarks.against_pruners --study STUDY --out pruners.json

Every tool prunes the study's baseline and fine-tunes it with the same images, augmentation, batches and loss;
distillation and optimiser are its own. A tool with several recipes runs all of them with the first seed, and with the
other seeds the one of lowest validation loss. Test images are measured, and choose nothing. Results already in `--out`
are kept, so that NNCF can run in an environment of its own (`reference/nncf_filter_pruning.py`).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chestx_cli.commands.prune import prune
from chestx_cli.core.files import write_atomic
from chestx_cli.core.record import jsonable
from chestx_cli.core.shared_options import CONSTANT, LOWEST
from chestx_cli.evaluation.statistics.outcome import Outcome, outcome_of
from chestx_cli.networks.devices import move_back, reproducible
from chestx_cli.networks.layers import count_macs
from chestx_cli.networks.training_data import predict_logits
from chestx_cli.networks.weights.serialization import load_network
from chestx_cli.records.split import TEST, VAL
from tools.benchmarks.reference import nncf_filter_pruning, torch_pruning_recipes
from tools.benchmarks.reference.finetuning import Descent
from tools.benchmarks.structured_quality import DEFAULTS, Bench, open_bench
from tools.harness.machine import describe
from tools.harness.processes import say

if TYPE_CHECKING:
    from torch import nn

    from chestx_cli.networks.training_data import FitData

# The learning rate of the variants in docs/results.md.
RATE = 3e-4
# A share of the MACs is met within this.
TOLERANCE = 0.01


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Results on one part of the split."""

    loss: float
    accuracy: float
    auroc: float

    @classmethod
    def of(cls, outcome: Outcome) -> Scores:
        """Return the scores of an outcome."""
        return cls(loss=outcome.loss, accuracy=outcome.accuracy, auroc=outcome.auroc)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One recipe of a tool with one seed."""

    tool: str
    recipe: str
    seed: int
    macs_removed: float
    val: Scores
    test: Scores
    duration_s: float


# Maps a bench and a seed to the pruned and fine-tuned network.
Fit = Callable[[Bench, int], "nn.Module"]


def of_chestx(bench: Bench, seed: int) -> nn.Module:
    """Return the network of `chestx prune --method structured`, with the baseline as teacher."""
    record = prune(
        study=bench.study.root,
        method="structured",
        amount=bench.amount,
        finetune_epochs=bench.epochs,
        distill=True,
        lr=RATE,
        schedule=CONSTANT,
        keep=LOWEST,
        seed=seed,
        name=f"structured-{bench.amount * 100:g}-seed-{seed}",
    )
    return load_network(bench.study, record)


def of_torch_pruning(way: Callable[..., nn.Module], descent: Descent, bench: Bench, seed: int) -> nn.Module:
    """Return the network of one of Torch-Pruning's recipes."""
    return way(bench.network(), bench.data, bench.recipe(seed), 1 - bench.amount, descent)


def of_nncf(descent: Descent, bench: Bench, seed: int) -> nn.Module:
    """Return the network of NNCF's recipe."""
    return nncf_filter_pruning.geometric_median(
        bench.network(), bench.data, bench.recipe(seed), 1 - bench.amount, descent, bench.network()
    )


# The optimiser of chestx, and those of the examples of the other tools.
OWN = Descent(rate=RATE)
OF_TORCH_PRUNING = torch_pruning_recipes.examples(DEFAULTS.batch_size)
OF_NNCF = nncf_filter_pruning.examples(DEFAULTS.batch_size)
TOOLS: dict[str, dict[str, Fit]] = {
    "chestx": {"structured --distill": of_chestx},
    "torch-pruning": {
        "local, Adam": partial(of_torch_pruning, torch_pruning_recipes.local, OWN),
        "local, SGD": partial(of_torch_pruning, torch_pruning_recipes.local, OF_TORCH_PRUNING),
        "isomorphic, Adam": partial(of_torch_pruning, torch_pruning_recipes.isomorphic, OWN),
        "isomorphic, SGD": partial(of_torch_pruning, torch_pruning_recipes.isomorphic, OF_TORCH_PRUNING),
        "group-sl, Adam": partial(of_torch_pruning, torch_pruning_recipes.group_sl, OWN),
    },
    "nncf": {
        "geometric median, Adam": partial(of_nncf, OWN),
        "geometric median, SGD": partial(of_nncf, OF_NNCF),
    },
}


def scores_of(network: nn.Module, data: FitData, part: str) -> Scores:
    """Return the results of a network on one part of the split, in FP32."""
    rows, positive = data.split.indices(part), data.split.positive
    logits = predict_logits(network.eval(), data, rows, device="cpu", precision="fp32").double()
    log_odds = (logits[:, positive] - logits[:, 1 - positive]).numpy()
    return Scores.of(outcome_of(log_odds, data.split.is_positive(rows)))


def measure(bench: Bench, tool: str, recipe: str, fit: Fit, seed: int) -> Result:
    """Prune, fine-tune and measure."""
    say(f"{tool}: {recipe}, seed {seed}")
    started_s = time.perf_counter()
    with reproducible(seed):
        network = move_back(fit(bench, seed))
    duration_s = time.perf_counter() - started_s
    removed = 1 - count_macs(network, bench.data.preprocessing.image_size_px) / bench.record.macs
    if abs(removed - bench.amount) > TOLERANCE:
        say(f"{tool}: {recipe} removed {removed:.1%} of the MACs instead of {bench.amount:.1%}")
    return Result(
        tool=tool,
        recipe=recipe,
        seed=seed,
        macs_removed=removed,
        val=scores_of(network, bench.data, VAL),
        test=scores_of(network, bench.data, TEST),
        duration_s=round(duration_s, 1),
    )


def read_results(path: Path) -> list[Result]:
    """Return the results of an earlier run; none if there was none."""
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(path.read_text())["results"]
    return [Result(**{**row, "val": Scores(**row["val"]), "test": Scores(**row["test"])}) for row in rows]


def best_of(results: list[Result], tool: str, seed: int) -> str:
    """Return a tool's recipe of lowest validation loss with a seed."""
    return min((one for one in results if (one.tool, one.seed) == (tool, seed)), key=lambda one: one.val.loss).recipe


def line_of(result: Result) -> str:
    """Return a result as a row of the table in docs/results.md."""
    val, test = (f"{one.loss:.4f} | {one.accuracy:.3f} | {one.auroc:.4f}" for one in (result.val, result.test))
    return f"| {result.tool} | {result.recipe} | {result.seed} | {result.macs_removed:.1%} | {val} | {test} |"


HEAD = (
    "| tool | recipe | seed | MACs removed | val loss | accuracy | AUROC | test loss | accuracy | AUROC |\n"
    "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def main(words: list[str] | None = None) -> None:
    """Measure the tools, print a line for each result, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--study", type=Path, required=True, help="study with a baseline; variants are added to it")
    parser.add_argument("--tools", nargs="+", choices=list(TOOLS), default=["chestx", "torch-pruning"])
    parser.add_argument("--without", nargs="+", default=[], help="recipes to leave out")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--amount", type=float, default=0.75, help="share of the MACs to remove")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("against_pruners.json"))
    options = parser.parse_args(words)
    bench = open_bench(options.study, amount=options.amount, epochs=options.epochs)
    results = read_results(options.out)
    print(HEAD)
    for tool in options.tools:
        recipes = {name: fit for name, fit in TOOLS[tool].items() if name not in options.without}
        for seed in options.seeds:
            chosen = list(recipes) if seed == options.seeds[0] else [best_of(results, tool, options.seeds[0])]
            for name in chosen:
                known = [one for one in results if (one.tool, one.recipe, one.seed) == (tool, name, seed)]
                result = known[0] if known else measure(bench, tool, name, recipes[name], seed)
                print(line_of(result), flush=True)
                if not known:
                    results.append(result)
                document = {"amount": bench.amount, "epochs": bench.epochs, "machine": describe()}
                write_atomic(options.out, json.dumps({**document, "results": jsonable(results)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
