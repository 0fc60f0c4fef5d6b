"""Which epoch is kept: that of the lowest validation loss, or the latest within its standard error."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chestx_cli.networks import training
from chestx_cli.networks.losses import LOSSES, losses_of_images
from chestx_cli.networks.recipe import is_within_one_error
from chestx_cli.networks.training_data import predict_logits
from chestx_cli.networks.weights.serialization import load_network
from chestx_cli.records.variant import LOWEST_LOSS, NEAR_LOWEST_LOSS
from chestx_cli.store.directory import Study
from conftest import TINY, Chestx


@pytest.mark.parametrize("weight", [None, torch.tensor([0.4, 1.7])])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_mean_over_images_is_the_loss(loss: str, weight: torch.Tensor | None) -> None:
    generator = torch.Generator().manual_seed(3)
    logits, labels = torch.randn(11, 2, generator=generator), torch.tensor([0, 1] * 5 + [1])
    losses = losses_of_images(LOSSES[loss], logits, labels, weight)
    assert losses.shape == (11,)
    assert float(losses.mean()) == pytest.approx(float(LOSSES[loss](logits, labels, weight)), abs=1e-6)


def test_the_error_is_that_of_the_mean_difference_over_patients() -> None:
    rng = np.random.default_rng(5)
    lowest, difference = rng.exponential(size=40), rng.normal(size=40)
    difference -= difference.mean()
    error = difference.std(ddof=1) / math.sqrt(40)
    each_alone = np.array([f"p{i}" for i in range(40)])

    def within(shift: float, patients: np.ndarray[Any, Any], *, of: int = 1) -> bool:
        later = np.repeat(lowest + difference + shift, of)
        return is_within_one_error(torch.from_numpy(later), torch.from_numpy(np.repeat(lowest, of)), patients)

    assert within(0.999 * error, each_alone)
    assert not within(1.001 * error, each_alone)
    # Repeating each patient's image tells nothing new.
    for shift in (0.999, 1.001):
        assert within(shift * error, np.repeat(each_alone, 3), of=3) == (shift < 1)
    # One patient shows no error.
    assert not within(0.0, np.array(["one"] * 40))


def test_an_epoch_without_a_difference_is_as_good() -> None:
    losses = torch.rand(6).double()
    patients = np.array(list("abcdef"))
    assert is_within_one_error(losses, losses, patients)
    assert not is_within_one_error(losses + 1e-6, losses, patients)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("keep", ["lowest", "one-se"])
def test_a_fit_keeps_the_weights_of_the_chosen_epoch(
    chestx: Chestx, fresh: Path, monkeypatch: pytest.MonkeyPatch, keep: str, seed: int
) -> None:
    """The choice epoch by epoch is that among all epochs, and the weights are of that epoch."""
    epochs, rng = 6, np.random.default_rng(seed)
    weights, logits = [], []
    labels, patients = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.str_)
    real = predict_logits

    def made_up(network: Any, data: Any, rows: Any, **options: Any) -> torch.Tensor:
        nonlocal labels, patients
        real(network, data, rows, **options)
        labels, patients = data.split.labels[rows], data.split.groups[rows]
        logits.append(torch.from_numpy(rng.normal(size=(len(rows), 2))).float())
        return logits[-1]

    real_finish = training._finish_epoch

    def remember(state: Any, *rest: Any) -> None:
        weights.append(state.network.state_dict()["conv1.weight"].detach().clone())
        real_finish(state, *rest)

    monkeypatch.setattr(training, "predict_logits", made_up)
    monkeypatch.setattr(training, "_finish_epoch", remember)
    words = ("--epochs", epochs, "--keep", keep, "--balance", "none", "--name", "fit", "--force")
    outcome = chestx("train", "--study", fresh, *TINY, *words)
    assert outcome.code == 0, outcome.err
    losses = [losses_of_images(LOSSES["ce"], one, torch.from_numpy(labels), None) for one in logits]
    best = min(range(epochs), key=lambda i: float(losses[i].mean()))
    within = [i for i in range(best, epochs) if is_within_one_error(losses[i], losses[best], patients)]
    expected = within[-1] if keep == "one-se" else best
    record = json.loads((fresh / "variants" / "fit" / "variant.json").read_text())["training"]
    assert record["best_epoch"] == expected + 1
    assert [row["kept"] for row in record["epochs"]] == [i == expected for i in range(epochs)]
    target = Study(fresh)
    stored = load_network(target, target.read_variant("fit")).state_dict()["conv1.weight"]
    assert torch.equal(stored, weights[expected])
    assert (LOWEST_LOSS if expected == best else NEAR_LOWEST_LOSS) in outcome.out
