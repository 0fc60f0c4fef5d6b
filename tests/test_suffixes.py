"""Folding and running from the middle give the numbers of the plain network, for every backbone."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from chestx_cli.backbones import BACKBONES, build_classifier
from chestx_cli.fitting import FitData
from chestx_cli.folding import FoldedNetwork
from chestx_cli.images import Preprocessing
from chestx_cli.layer_sensitivity import measure_layers
from chestx_cli.models import prunable_layers
from chestx_cli.study import Split
from chestx_cli.suffixes import run_with_pauses

SIDE_PX = 32
IMAGES = 10


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(backbone: str) -> nn.Module:
    """Return a network whose normalisations have seen data: fresh ones would hide a folding that forgets them."""
    torch.manual_seed(1)
    network = build_classifier(backbone, 2)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean = torch.randn(module.num_features) * 0.1
            module.running_var = torch.rand(module.num_features) + 0.5
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return network.eval()


def made_up_data() -> FitData:
    rng = np.random.default_rng(3)
    labels = np.arange(IMAGES) % 2
    names = np.array([f"img-{row}" for row in range(IMAGES)])
    split = Split(
        root=Path(),
        classes=("NORMAL", "PNEUMONIA"),
        positive=1,
        ids=names,
        paths=names,
        labels=labels.astype(np.int64),
        groups=names,
        parts=np.array(["val"] * IMAGES),
        image_sha256=names,
        sha256="",
    )
    pixels = rng.integers(0, 256, (IMAGES, SIDE_PX, SIDE_PX), dtype=np.uint8)
    return FitData(pixels=pixels, split=split, preprocessing=Preprocessing(image_size_px=SIDE_PX))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_folded_network_computes_the_same_with_fewer_steps(backbone: str) -> None:
    network = trained(backbone)
    inputs = torch.randn(3, 3, SIDE_PX, SIDE_PX)
    folded = FoldedNetwork(network)
    with torch.inference_mode():
        expected = network(inputs)
        torch.testing.assert_close(folded(inputs), expected, rtol=1e-4, atol=1e-4)
    kinds = [type(module).__name__ for module in folded.graph_module.modules()]
    plain = [type(module).__name__ for module in network.modules()]
    assert kinds.count("BatchNorm1d") < plain.count("BatchNorm1d")
    assert kinds.count("BatchNorm2d") <= plain.count("BatchNorm2d")


def test_a_folded_network_follows_its_network_when_refreshed() -> None:
    network = trained("tiny")
    inputs = torch.randn(3, 3, SIDE_PX, SIDE_PX)
    folded = FoldedNetwork(network)
    prune.l1_unstructured(network.get_submodule("conv2"), "weight", amount=0.5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)
    with torch.inference_mode():
        stale = folded(inputs)
        # The layer's own `weight` is brought up to date by this call only.
        expected = network(inputs)
        assert not torch.allclose(stale, expected, atol=1e-4)
        torch.testing.assert_close(folded.refresh()(inputs), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_finishing_from_any_layer_gives_the_output_and_spoils_nothing(backbone: str) -> None:
    network = trained(backbone)
    inputs = torch.randn(2, 3, SIDE_PX, SIDE_PX)
    layers = frozenset(prunable_layers(network))
    graph_module = FoldedNetwork(network).graph_module
    with torch.inference_mode():
        expected = graph_module(inputs.clone())
        met = []
        for pause in run_with_pauses(graph_module, inputs, layers):
            met.append(pause.layer)
            # Twice: the first run must not overwrite what the second starts from.
            assert torch.equal(pause.finish(), expected)
            assert torch.equal(pause.finish(), expected)
    assert met[-1] is None
    assert set(met[:-1]) == layers


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_sweep_equals_the_naive_one(backbone: str) -> None:
    network = trained(backbone)
    data = made_up_data()
    names = list(prunable_layers(network))
    # The first, the last and some between: a naive pass over all layers of all backbones takes minutes.
    chosen = names if len(names) < 8 else [*names[:: max(1, len(names) // 6)], names[-1]]
    layers = {name: network.get_submodule(name) for name in chosen}
    before = copy.deepcopy(network.state_dict())
    counted: list[int] = []
    _, found = measure_layers(network, layers, data, (0.3, 0.8), device="cpu", advance=counted.append)
    assert sum(counted) == IMAGES * len(layers) * 2
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    inputs = torch.from_numpy(data.preprocessing.normalised(data.pixels))
    labels = torch.from_numpy(data.split.labels)
    by_key = {(row.layer, row.amount): row for row in found}
    assert len(by_key) == len(layers) * 2
    for name in layers:
        for amount in (0.3, 0.8):
            pruned = copy.deepcopy(network)
            prune.l1_unstructured(pruned.get_submodule(name), "weight", amount=amount)
            with torch.inference_mode():
                logits = pruned(inputs)
            row = by_key[name, amount]
            assert row.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), abs=1e-4)
            assert round(row.accuracy * IMAGES) == int((logits.argmax(1) == labels).sum())
