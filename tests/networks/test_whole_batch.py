"""Parts of a batch give the result of the whole batch: distribution of rows, random masks, BatchNorm."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import nn

from chestx_cli.networks.backbones import load_torchvision
from chestx_cli.networks.parallel.ranks import Ranks, parts
from chestx_cli.networks.parallel.whole_batch import _normalised, seeing_whole_batch


@pytest.mark.parametrize(
    ("n_rows", "n", "least", "sizes"),
    [
        (32, 2, 2, [16, 16]),
        (7, 3, 2, [3, 2, 2]),
        (5, 4, 2, [3, 2, 0, 0]),
        (3, 2, 2, [3, 0]),
        (3, 2, 1, [2, 1]),
        (2, 3, 1, [1, 1, 0]),
        (1, 2, 2, [1, 0]),
    ],
)
def test_rows_are_divided_without_loss_and_nobody_has_too_few(
    n_rows: int, n: int, least: int, sizes: list[int]
) -> None:
    found = parts(n_rows, n, least)
    assert [part.stop - part.start for part in found] == sizes
    assert [row for part in found for row in range(n_rows)[part]] == list(range(n_rows))


MASKING = {
    "dropout": (nn.Dropout(0.5), (5, 7)),
    "dropout of maps": (nn.Dropout2d(0.5), (5, 7, 3, 3)),
    "stochastic depth": (load_torchvision().ops.StochasticDepth(0.5, "row"), (5, 7, 3, 3)),
}


@pytest.mark.parametrize("name", MASKING)
def test_random_masks_are_those_of_one_process(name: str) -> None:
    layer, shape = MASKING[name]
    network = nn.Sequential(copy.deepcopy(layer))
    inputs = torch.rand(shape) + 1
    torch.manual_seed(3)
    whole = network(inputs)
    assert (whole == 0).any()
    found = []
    for rank in range(2):
        torch.manual_seed(3)
        ranks = Ranks(rank=rank, n=2)
        with seeing_whole_batch(network, ranks) as batch:
            batch.of(len(inputs), ranks.part(len(inputs)))
            found.append(network(inputs[batch.rows]))
    assert torch.equal(torch.cat(found), whole)
    torch.manual_seed(3)
    assert torch.equal(network(inputs), whole), "the layer is what it was"


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 5, 5)])
def test_batchnorm_over_all_processes_is_torchs_over_one(shape: tuple[int, ...]) -> None:
    kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    expected = kind(4)
    nn.init.uniform_(expected.weight)
    nn.init.uniform_(expected.bias)
    found = copy.deepcopy(expected)
    # Far from zero, where a difference of mean squares loses its digits.
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 30
    toward = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    gradients = []
    for compute in (expected, lambda inputs: _normalised(found, inputs)):
        inputs = values.clone().requires_grad_()
        (compute(inputs) * toward).sum().backward()
        gradients.append(inputs.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.weight.grad, expected.weight.grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(dict(found.named_buffers()), dict(expected.named_buffers()), rtol=1e-5, atol=1e-5)
