"""Folding and partial forward passes give the results of the plain network, for every backbone."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from chestx_cli.compression.pruning import onednn
from chestx_cli.compression.pruning.layer_sensitivity import measure_layers
from chestx_cli.compression.pruning.onednn import pack_convolutions
from chestx_cli.compression.pruning.partial_forward import run_with_pauses
from chestx_cli.networks.backbones import BACKBONES, build_classifier
from chestx_cli.networks.batchnorm_folding import FoldedNetwork
from chestx_cli.networks.layers import prunable_layers
from chestx_cli.networks.training_data import FitData
from chestx_cli.records.preprocessing import Preprocessing
from chestx_cli.store.split import Split

SIDE_PX = 32
IMAGES = 10
needs_packing = pytest.mark.skipif(not onednn.packing_is_available(), reason="torch was built without oneDNN")


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


@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=needs_packing)], ids=["plain", "packed"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_finishing_from_any_layer_gives_the_output_and_spoils_nothing(backbone: str, packed: bool) -> None:
    network = trained(backbone)
    inputs = torch.randn(2, 3, SIDE_PX, SIDE_PX)
    layers = frozenset(prunable_layers(network))
    graph_module = FoldedNetwork(network).graph_module
    if packed:
        pack_convolutions(graph_module)
    with torch.inference_mode():
        expected = graph_module(inputs.clone())
        met = []
        for pause in run_with_pauses(graph_module, inputs, layers):
            met.append(pause.layer)
            # Twice: the first run must not overwrite what the second starts from.
            assert torch.equal(pause.finish(None), expected)
            assert torch.equal(pause.finish(None), expected)
    assert met[-1] is None
    assert set(met[:-1]) == layers


@needs_packing
@pytest.mark.parametrize("backbone", BACKBONES)
def test_packed_convolutions_compute_the_same_with_fewer_steps(backbone: str) -> None:
    network = trained(backbone)
    inputs = torch.randn(3, 3, SIDE_PX, SIDE_PX)
    graph_module = FoldedNetwork(network).graph_module
    plain = len(graph_module.graph.nodes)
    with torch.inference_mode():
        expected = graph_module(inputs.clone())
        pack_convolutions(graph_module)
        torch.testing.assert_close(graph_module(inputs), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(network(inputs), expected, rtol=1e-4, atol=1e-4)
    kinds = [type(module).__name__ for module in graph_module.modules()]
    assert "Conv2d" not in kinds
    # ConvNeXt has no activation behind a convolution, and normalises before it adds.
    assert len(graph_module.graph.nodes) < plain or backbone == "convnext_tiny"


@needs_packing
def test_a_residual_block_is_summed_in_its_last_convolution() -> None:
    graph_module = FoldedNetwork(trained("resnet18")).graph_module
    pack_convolutions(graph_module)
    # All but the stem's convolution and the head's linear layers are of two per block, the last with the sum.
    targets = [str(node.target) for node in graph_module.graph.nodes if node.op == "call_function"]
    assert not [target for target in targets if "add" in target]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_each_number_of_threads_finds_the_same(threads: int) -> None:
    network, data = trained("tiny"), made_up_data()
    layers = prunable_layers(network)
    _, alone = measure_layers(
        network, layers, data, (0.3, 0.8), device="cpu", precision="fp32", advance=lambda _images: None
    )
    torch.set_num_threads(threads)
    counted: list[int] = []
    _, found = measure_layers(network, layers, data, (0.3, 0.8), device="cpu", precision="fp32", advance=counted.append)
    assert torch.get_num_threads() == threads
    assert sum(counted) == IMAGES * len(layers) * 2
    for one, other in zip(alone, found, strict=True):
        assert (other.layer, other.amount, other.accuracy) == (one.layer, one.amount, one.accuracy)
        assert other.loss == pytest.approx(one.loss, abs=1e-5)


def test_where_torch_lacks_the_kernels_the_plain_layers_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    network, data = trained("tiny"), made_up_data()
    layers = prunable_layers(network)
    fused = measure_layers(network, layers, data, (0.5,), device="cpu", precision="fp32", advance=lambda _images: None)
    monkeypatch.setattr(onednn, "packing_is_available", lambda: False)
    plain = measure_layers(network, layers, data, (0.5,), device="cpu", precision="fp32", advance=lambda _images: None)
    assert plain[0].loss == pytest.approx(fused[0].loss, abs=1e-5)
    assert [row.loss for row in plain[1]] == pytest.approx([row.loss for row in fused[1]], abs=1e-5)


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
    _, found = measure_layers(network, layers, data, (0.3, 0.8), device="cpu", precision="fp32", advance=counted.append)
    assert sum(counted) == IMAGES * len(layers) * 2
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    inputs = torch.from_numpy(data.preprocessing.normalised(np.array(data.pixels)))
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
