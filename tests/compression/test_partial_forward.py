"""Folding and partial forward passes give the results of the plain network, for every backbone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from chestx_cli.compression.pruning import onednn
from chestx_cli.compression.pruning.layer_sensitivity import (
    check_precision,
    images_to_check,
    l1_masks,
    measure_layers,
    measurements_to_check,
)
from chestx_cli.compression.pruning.onednn import Geometry, PackedConv, pack_convolutions
from chestx_cli.compression.pruning.onednn_int8 import (
    Grid,
    Int8Conv,
    int8_is_available,
    quantize_convolutions,
    restored,
    rounded,
)
from chestx_cli.compression.pruning.partial_forward import Replacement, run_with_pauses
from chestx_cli.core.errors import ChestxError
from chestx_cli.networks.backbones import BACKBONES, build_classifier
from chestx_cli.networks.batchnorm_folding import FoldedNetwork
from chestx_cli.networks.layers import prunable_layers
from chestx_cli.networks.training_data import FitData
from chestx_cli.records.preprocessing import Preprocessing
from chestx_cli.store.split import Split

SIDE_PX = 32
IMAGES = 10
needs_packing = pytest.mark.skipif(not onednn.packing_is_available(), reason="torch was built without oneDNN")
needs_int8 = pytest.mark.skipif(not int8_is_available(), reason="no VNNI, or torch was built without oneDNN")
every_kernel = pytest.mark.parametrize(
    "kernels", ["plain", pytest.param("packed", marks=needs_packing), pytest.param("int8", marks=needs_int8)]
)


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


def made_up_data(labels: npt.NDArray[np.int64] | None = None) -> FitData:
    rng = np.random.default_rng(3)
    labels = np.arange(IMAGES) % 2 if labels is None else labels
    names = np.array([f"img-{row}" for row in range(len(labels))])
    split = Split(
        root=Path(),
        classes=("NORMAL", "PNEUMONIA"),
        positive=1,
        ids=names,
        paths=names,
        labels=labels.astype(np.int64),
        groups=names,
        parts=np.array(["val"] * len(labels)),
        image_sha256=names,
        sha256="",
    )
    pixels = rng.integers(0, 256, (len(labels), SIDE_PX, SIDE_PX), dtype=np.uint8)
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


@every_kernel
@pytest.mark.parametrize("backbone", BACKBONES)
def test_finishing_from_any_layer_gives_the_output_and_spoils_nothing(backbone: str, kernels: str) -> None:
    network = trained(backbone)
    inputs = torch.randn(2, 3, SIDE_PX, SIDE_PX)
    layers = frozenset(prunable_layers(network))
    graph_module = FoldedNetwork(network).graph_module
    if kernels != "plain":
        pack_convolutions(graph_module)
    if kernels == "int8":
        quantize_convolutions(graph_module, [inputs])
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


def exact_result(conv: Int8Conv, x: torch.Tensor, other: torch.Tensor | None) -> torch.Tensor:
    """Return what an 8-bit convolution should give, computed in FP32 from what its integers stand for."""
    moves, (name, parameters) = conv.geometry, conv.activation
    total = nn.functional.conv2d(
        restored(x, conv.grids[0].scale, conv.grids[0].zero_point),
        conv.weight * conv.scales.reshape(-1, 1, 1, 1),
        conv.bias,
        padding=moves.padding,
        stride=moves.stride,
        dilation=moves.dilation,
        groups=moves.groups,
    )
    if other is not None:
        total = total + restored(other, conv.grids[1].scale, conv.grids[1].zero_point)
    activations: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "none": lambda y: y,
        "relu": torch.relu,
        "hardtanh": lambda y: y.clamp(*parameters),
        "swish": nn.functional.silu,
        "hardswish": nn.functional.hardswish,
    }
    return rounded(activations[name](total), conv.output_grid.scale, conv.output_grid.zero_point)


def assert_rounds(conv: Int8Conv, found: torch.Tensor, x: torch.Tensor, other: torch.Tensor | None) -> None:
    levels = (found.int() - exact_result(conv, x, other).int()).abs()
    # One level apart where the exact result lies in the middle of two.
    assert int(levels.max()) <= 1
    assert float(levels.float().mean()) < 0.01


@needs_int8
@pytest.mark.parametrize("backbone", BACKBONES)
def test_each_convolution_of_a_network_can_compute_in_8_bits(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = torch.randn(4, 3, SIDE_PX, SIDE_PX)
    graph_module = FoldedNetwork(trained(backbone)).graph_module
    pack_convolutions(graph_module)
    quantize_convolutions(graph_module, inputs.split(2))
    convolutions = [module for module in graph_module.modules() if isinstance(module, PackedConv)]
    assert all(isinstance(conv, Int8Conv) for conv in convolutions)
    seen: list[Int8Conv] = []
    compute = Int8Conv.compute

    def checked(conv: Int8Conv, x: torch.Tensor, other: torch.Tensor | None, packed: torch.Tensor) -> torch.Tensor:
        found = compute(conv, x, other, packed)
        assert_rounds(conv, found, x, other)
        seen.append(conv)
        return found

    monkeypatch.setattr(Int8Conv, "compute", checked)
    with torch.inference_mode():
        graph_module(inputs)
    assert len(seen) == len(convolutions)


@needs_int8
@pytest.mark.parametrize("low", [0.0, -1.5], ids=["unsigned", "signed"])
@pytest.mark.parametrize("adds", [False, True], ids=["alone", "with a sum"])
@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (1, 2), (4, 1), (8, 1)])
def test_an_8_bit_convolution_rounds_the_exact_result(low: float, adds: bool, groups: int, stride: int) -> None:
    torch.manual_seed(2)
    packed = PackedConv(
        nn.Parameter(torch.randn(8, 8 // groups, 3, 3)),
        nn.Parameter(torch.randn(8)),
        Geometry(padding=(1, 1), stride=(stride, stride), dilation=(1, 1), groups=groups),
    )
    # A channel without weights has no scale of its own.
    packed.weight.data[3] = 0
    packed.activation = ("relu", ())
    of_input, of_other = Grid.over(low, 2.0), Grid.over(-3.0, 1.0)
    conv = Int8Conv(packed, (of_input, of_other) if adds else (of_input,), Grid.over(0.0, 20.0))
    side = -(-9 // stride)
    arguments = [rounded(torch.rand(2, 8, 9, 9) * (2 - low) + low, of_input.scale, of_input.zero_point)]
    if adds:
        arguments.append(rounded(torch.rand(2, 8, side, side) * 4 - 3, of_other.scale, of_other.zero_point))
    arguments = [one.contiguous(memory_format=torch.channels_last) for one in arguments]
    before = [one.clone() for one in arguments]
    with torch.inference_mode():
        found = conv(*arguments)
    assert_rounds(conv, found, arguments[0], arguments[1] if adds else None)
    assert all(torch.equal(one, was) for one, was in zip(arguments, before, strict=True))


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (0.5, 2.0), (-3.0, -1.0), (-0.7, 5.0)])
def test_a_grid_contains_zero_and_its_range(low: float, high: float) -> None:
    grid = Grid.over(low, high)
    ends = torch.tensor([low, 0.0, high])
    again = restored(rounded(ends, grid.scale, grid.zero_point), grid.scale, grid.zero_point)
    assert again[1] == 0
    assert float((again - ends).abs().max()) <= grid.scale * 0.51


@pytest.mark.parametrize("precision", ["fp32", pytest.param("int8", marks=needs_int8)])
@pytest.mark.parametrize("number", [1e30, -1e30, math.nan])
def test_a_network_without_finite_logits_is_not_measured(number: float, precision: str) -> None:
    network = trained("tiny")
    with torch.no_grad():
        for layer in prunable_layers(network).values():
            layer.get_parameter("weight").mul_(number)
    amounts = dict.fromkeys(prunable_layers(network), (0.5,))
    with pytest.raises(ChestxError, match="no finite loss"):
        _ = measure_layers(
            network, amounts, made_up_data(), device="cpu", precision=precision, advance=lambda _images: None
        ).intact


@pytest.mark.parametrize("amount", [0.01, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("outputs", [1, 2, 7])
def test_a_mask_has_the_zeros_that_torch_would_set(amount: float, outputs: int) -> None:
    layer = nn.Linear(5, outputs)
    (mask,) = l1_masks(layer, (amount,)).values()
    prune.l1_unstructured(layer, "weight", amount=amount)
    assert torch.equal(mask, layer.get_buffer("weight_mask").bool())


class Residual(nn.Module):
    """What a plugin's network may contain: sums of three and with a number, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(8, 8, 1) for _ in range(3))
        self.first, self.second = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.silu, self.relu6, self.head = nn.SiLU(), nn.ReLU6(), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits [N, 2] of images [N, 3, H, W]."""
        x = self.stem(x)
        y = self.first(self.twice(x))
        y = self.second(self.twice(y))
        y = self.silu(self.conv1(y) + x)
        y = self.relu6(self.conv2(y) + x + y)
        self.conv3(y)
        y = self.conv3(y) + 1.0
        logits: torch.Tensor = self.head((y + y).mean((2, 3)))
        return logits


@pytest.mark.parametrize("precision", ["fp32", pytest.param("int8", marks=needs_int8)])
def test_a_network_of_a_plugin_is_measured_as_it_computes(precision: str) -> None:
    torch.manual_seed(4)
    network, data = Residual().eval(), made_up_data()
    for norm in (network.first, network.second):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        norm.running_var = torch.rand(8) + 0.5
    layers = list(prunable_layers(network))
    sweep = measure_layers(
        network, dict.fromkeys(layers, (0.6,)), data, device="cpu", precision=precision, advance=lambda _images: None
    )
    inputs = torch.from_numpy(data.preprocessing.normalised(np.array(data.pixels)))
    labels = torch.from_numpy(data.split.labels)
    tolerance = 1e-4 if precision == "fp32" else 0.02
    with torch.inference_mode():
        whole = float(nn.functional.cross_entropy(network(inputs), labels))
    assert sweep.intact.loss == pytest.approx(whole, abs=tolerance)
    for row in sweep.measurements:
        pruned = copy.deepcopy(network)
        prune.l1_unstructured(pruned.get_submodule(row.layer), "weight", amount=0.6)
        with torch.inference_mode():
            loss = float(nn.functional.cross_entropy(pruned(inputs), labels))
        assert row.loss == pytest.approx(loss, abs=tolerance)


class Adding(nn.Module):
    """A network whose second convolution adds a tensor of some kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem, self.second, self.third = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8))
        self.gate, self.pool, self.keep = nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Identity()
        self.learned, self.head = nn.Parameter(torch.randn(1, 8, SIDE_PX, SIDE_PX)), nn.Linear(8, 2)

    def added(self, x: torch.Tensor) -> torch.Tensor:
        """Return what is added, given the stem's output."""
        if self.kind == "input":
            return x
        if self.kind == "alias":
            kept: torch.Tensor = self.keep(x)
            return kept
        if self.kind == "parameter":
            return self.learned
        if self.kind == "part":
            return torch.cat([x, -x], 1).chunk(2, 1)[1]
        small: torch.Tensor = self.gate(self.pool(x) if self.kind in ("of one pixel", "expanded") else x)
        return small.expand(-1, -1, SIDE_PX, SIDE_PX) if self.kind == "expanded" else small

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits [N, 2] of images [N, 3, H, W]."""
        x = torch.relu(self.stem(x))
        added = self.added(x)
        x = self.second(x) + added
        x = self.third(x) + (added if self.kind == "used again" else x)
        logits: torch.Tensor = self.head(x.mean((2, 3)))
        return logits


@pytest.mark.parametrize("images", [1, 3])
@every_kernel
@pytest.mark.parametrize(
    "kind", ["spent", "used again", "input", "alias", "parameter", "of one pixel", "expanded", "part"]
)
def test_a_sum_overwrites_nothing_that_is_needed(kind: str, kernels: str, images: int) -> None:
    torch.manual_seed(6)
    network = Adding(kind).eval()
    inputs = torch.randn(images, 3, SIDE_PX, SIDE_PX)
    graph_module = FoldedNetwork(network).graph_module
    with torch.inference_mode():
        expected = network(inputs)
    if kernels != "plain":
        pack_convolutions(graph_module)
    if kernels == "int8":
        quantize_convolutions(graph_module, [inputs])
    with torch.inference_mode():
        whole = graph_module(inputs.clone())
        torch.testing.assert_close(whole, expected, rtol=0, atol=0.02 if kernels == "int8" else 1e-5)
        for pause in run_with_pauses(graph_module, inputs, frozenset(prunable_layers(network))):
            for _ in range(3):
                assert torch.equal(pause.finish(None), whole)
        assert torch.equal(graph_module(inputs.clone()), whole)


def test_measurements_to_check_reach_from_the_largest_to_the_smallest_loss() -> None:
    network, data = trained("tiny"), made_up_data()
    amounts = dict.fromkeys(prunable_layers(network), (0.1, 0.5, 0.9))
    whole = measure_layers(network, amounts, data, device="cpu", precision="fp32", advance=lambda _images: None)
    every = whole.measurements
    chosen = measurements_to_check(every)
    pairs = {(layer, amount) for layer, some in chosen.items() for amount in some}
    assert len(pairs) == 12
    losses = [one.loss for one in every]
    of_chosen = [one.loss for one in every if (one.layer, one.amount) in pairs]
    assert (min(of_chosen), max(of_chosen)) == (min(losses), max(losses))
    counted: list[int] = []
    some = measure_layers(network, chosen, data, device="cpu", precision="fp32", advance=counted.append).measurements
    assert sum(counted) == IMAGES * len(pairs)
    assert {(one.layer, one.amount): one for one in some} == {
        (one.layer, one.amount): one for one in every if (one.layer, one.amount) in pairs
    }


@pytest.mark.parametrize(("images", "positive"), [(10, 5), (60, 30), (1000, 20), (57, 56), (2, 1)])
def test_measurements_are_repeated_on_images_of_both_classes(images: int, positive: int) -> None:
    labels = (np.arange(images) < positive).astype(np.int64)
    data = made_up_data(labels)
    rows = images_to_check(data)
    assert len(set(rows)) == len(rows)
    assert min(images, 16) <= len(rows) <= min(images, 16) + 1
    assert set(data.split.is_positive(rows)) == {0, 1}


@pytest.mark.parametrize("precision", ["fp32", pytest.param("int8", marks=needs_int8)])
def test_a_sweep_of_some_images_is_the_whole_one_of_these(precision: str) -> None:
    network, data = trained("tiny"), made_up_data()
    amounts = dict.fromkeys(prunable_layers(network), (0.3, 0.8))
    whole = measure_layers(network, amounts, data, device="cpu", precision=precision, advance=lambda _images: None)
    rows = np.array([0, 3, 4, 7])
    some = measure_layers(
        network, amounts, data, device="cpu", precision=precision, advance=lambda _images: None, rows=rows
    )
    assert whole.on(rows).intact.loss == pytest.approx(some.intact.loss, abs=1e-6)
    for one, other in zip(whole.on(rows).measurements, some.measurements, strict=True):
        assert (one.layer, one.amount) == (other.layer, other.amount)
        assert one.loss == pytest.approx(other.loss, abs=1e-6)
    check = check_precision(whole, some)
    assert check.images == len(rows)
    assert check.max_loss_difference == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "kernels", [pytest.param("packed", marks=needs_packing), pytest.param("int8", marks=needs_int8)]
)
@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_small", "tiny"])
def test_a_weight_packed_for_one_batch_serves_batches_of_other_sizes(backbone: str, kernels: str) -> None:
    network = trained(backbone)
    graph_module = FoldedNetwork(network).graph_module
    pack_convolutions(graph_module)
    if kernels == "int8":
        quantize_convolutions(graph_module, [torch.randn(2, 3, SIDE_PX, SIDE_PX)])
    layers = prunable_layers(network)
    batches = [torch.randn(n, 3, SIDE_PX, SIDE_PX) for n in (3, 1, 8)]
    with torch.inference_mode():
        runs = [run_with_pauses(graph_module, batch, frozenset(layers)) for batch in batches]
        for pauses in zip(*runs, strict=True):
            if pauses[0].layer is None:
                continue
            weight = graph_module.get_submodule(pauses[0].layer).get_parameter("weight")
            changed = weight * (torch.rand(weight.shape) > 0.5)
            shared = Replacement(weight=changed)
            for pause in pauses:
                alone = pause.finish(Replacement(weight=changed))
                assert torch.equal(pause.finish(shared), alone)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("int8", marks=needs_int8)])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_each_number_of_threads_finds_the_same(threads: int, precision: str) -> None:
    network, data = trained("tiny"), made_up_data()
    amounts = dict.fromkeys(prunable_layers(network), (0.3, 0.8))
    alone = measure_layers(network, amounts, data, device="cpu", precision=precision, advance=lambda _images: None)
    torch.set_num_threads(threads)
    counted: list[int] = []
    found = measure_layers(network, amounts, data, device="cpu", precision=precision, advance=counted.append)
    assert torch.get_num_threads() == threads
    assert sum(counted) == IMAGES * len(amounts) * 2
    for one, other in zip(alone.measurements, found.measurements, strict=True):
        assert (other.layer, other.amount, other.accuracy) == (one.layer, one.amount, one.accuracy)
        assert other.loss == pytest.approx(one.loss, abs=1e-5)


def test_where_torch_lacks_the_kernels_the_plain_layers_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    network, data = trained("tiny"), made_up_data()
    amounts = dict.fromkeys(prunable_layers(network), (0.5,))
    fused = measure_layers(network, amounts, data, device="cpu", precision="fp32", advance=lambda _images: None)
    monkeypatch.setattr(onednn, "packing_is_available", lambda: False)
    plain = measure_layers(network, amounts, data, device="cpu", precision="fp32", advance=lambda _images: None)
    assert plain.intact.loss == pytest.approx(fused.intact.loss, abs=1e-5)
    assert [row.loss for row in plain.measurements] == pytest.approx([row.loss for row in fused.measurements], abs=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_sweep_equals_the_naive_one(backbone: str) -> None:
    network = trained(backbone)
    data = made_up_data()
    names = list(prunable_layers(network))
    # The first, the last and some between: a naive pass over all layers of all backbones takes minutes.
    chosen = names if len(names) < 8 else [*names[:: max(1, len(names) // 6)], names[-1]]
    amounts = dict.fromkeys(chosen, (0.3, 0.8))
    before = copy.deepcopy(network.state_dict())
    counted: list[int] = []
    found = measure_layers(network, amounts, data, device="cpu", precision="fp32", advance=counted.append)
    assert sum(counted) == IMAGES * len(amounts) * 2
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    inputs = torch.from_numpy(data.preprocessing.normalised(np.array(data.pixels)))
    labels = torch.from_numpy(data.split.labels)
    by_key = {(row.layer, row.amount): row for row in found.measurements}
    assert len(by_key) == len(amounts) * 2
    for name in amounts:
        for amount in (0.3, 0.8):
            pruned = copy.deepcopy(network)
            prune.l1_unstructured(pruned.get_submodule(name), "weight", amount=amount)
            with torch.inference_mode():
                logits = pruned(inputs)
            row = by_key[name, amount]
            assert row.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), abs=1e-4)
            assert round(row.accuracy * IMAGES) == int((logits.argmax(1) == labels).sum())
