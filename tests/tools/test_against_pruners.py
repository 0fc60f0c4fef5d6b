"""The comparison with other pruning tools: all prune to the same MACs, and only validation images choose."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch_pruning

from chestx_cli.core.progress import SILENT
from chestx_cli.networks.devices import reproducible
from chestx_cli.networks.layers import count_macs
from chestx_cli.networks.training import fit
from chestx_cli.store.checkpoints import Checkpoints
from tools.benchmarks import against_pruners
from tools.benchmarks.against_pruners import Result, Scores, best_of
from tools.benchmarks.reference import finetuning, torch_pruning_recipes
from tools.benchmarks.structured_quality import Bench, open_bench

# What one of two layers can lose in multiples of 8 channels.
AMOUNT = 0.329


@pytest.fixture
def bench(fresh: Path) -> Bench:
    """Return a bench of a tiny network."""
    return open_bench(fresh, amount=AMOUNT, epochs=2)


def test_both_tools_prune_to_the_same_macs_and_are_measured_alike(
    fresh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--study", str(fresh), "--out", str(tmp_path / "out.json"), "--epochs", "1", "--seeds", "1", "2"]
    against_pruners.main([*words, "--amount", str(AMOUNT)])
    shown = capsys.readouterr().out
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    recipes = [(one["tool"], one["recipe"], one["seed"]) for one in results]
    chosen = min(
        (one for one in results if one["tool"] == "torch-pruning"), key=lambda one: (one["seed"], one["val"]["loss"])
    )
    every = against_pruners.TOOLS["torch-pruning"]
    assert recipes == [
        ("chestx", "structured --distill", 1),
        ("chestx", "structured --distill", 2),
        *(("torch-pruning", name, 1) for name in every),
        ("torch-pruning", chosen["recipe"], 2),
    ]
    for one in results:
        # A channel of so few is a tenth of the network.
        assert one["macs_removed"] == pytest.approx(AMOUNT, abs=0.12)
        assert one["val"]["loss"] > 0
        assert 0 <= one["test"]["auroc"] <= 1
        assert f"| {one['tool']} | {one['recipe']} | {one['seed']} |" in shown
    assert "macs_removed" in results[0]
    before = (tmp_path / "out.json").read_text()
    against_pruners.main([*words, "--amount", str(AMOUNT)])
    assert json.loads((tmp_path / "out.json").read_text())["results"] == json.loads(before)["results"]


def test_the_loop_of_the_examples_trains_as_chestx_does(bench: Bench, tmp_path: Path) -> None:
    recipe = replace(bench.recipe(3), learning_rate=1e-3)
    with reproducible(3):
        ours, theirs = bench.network(), bench.network()
        checkpoints = Checkpoints(folder=tmp_path, identity={}, every_steps=None)
        fit(ours, bench.data, recipe, SILENT, stage="fit", checkpoints=checkpoints)
        finetuning.finetune(theirs, bench.data, recipe, finetuning.Descent(rate=1e-3))
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(theirs.state_dict()[name], tensor, msg=name)
    assert not torch.equal(bench.network().state_dict()["conv1.weight"], ours.state_dict()["conv1.weight"])


def test_the_rate_falls_where_the_examples_say() -> None:
    descent = torch_pruning_recipes.examples(32)
    optimizer = descent.of(torch.nn.Linear(1, 1))
    rates = []
    for epoch in range(10):
        descent.set_rate(optimizer, epoch, 10)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.0025] * 6 + [0.00025] * 2 + [0.000025] * 2)


def test_pruning_at_a_ratio_leaves_the_network_itself_unchanged(bench: Bench) -> None:
    network = bench.network()
    whole = count_macs(network, 32)

    def prune(narrower: torch.nn.Module, ratio: float) -> None:
        importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
        torch_pruning_recipes.pruner_of(narrower, 32, "BasePruner", importance, pruning_ratio=ratio).step()

    pruned = torch_pruning_recipes.at_macs(network, 32, 0.5, prune)
    assert count_macs(network, 32) == whole
    assert count_macs(pruned, 32) <= whole / 2


def test_the_best_recipe_has_the_lowest_validation_loss() -> None:
    def result(recipe: str, loss: float, test: float) -> Result:
        val, other = Scores(loss=loss, accuracy=1.0, auroc=1.0), Scores(loss=test, accuracy=1.0, auroc=1.0)
        return Result(tool="t", recipe=recipe, seed=1, macs_removed=0.5, val=val, test=other, duration_s=1.0)

    assert best_of([result("a", 0.3, 0.1), result("b", 0.2, 0.9)], "t", 1) == "b"
