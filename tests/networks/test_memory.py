"""What keeps the memory of a fit low changes no result: gradients in place, folded weights freed between uses."""

from __future__ import annotations

import copy
import platform
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from chestx_cli.networks.batchnorm_folding import FoldedNetwork
from chestx_cli.networks.memory import gradients_kept_in_place

STEPS = 5


class Branching(nn.Module):
    """Uses one convolution twice, another in every second step, and a third never."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.sometimes, self.never = (nn.Conv2d(n, 4, 3, padding=1) for n in (3, 4, 4, 4))
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.step = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits [N, 2] of images [N, 3, H, W]."""
        maps = self.shared(F.relu(self.shared(self.first(inputs))))
        if self.step % 2 == 0:
            maps = self.sometimes(maps)
        self.step += 1
        logits: torch.Tensor = self.head(F.dropout(F.relu(self.norm(maps)), training=self.training).mean(dim=(2, 3)))
        return logits


def _fitted(
    network: nn.Module, *, kept: bool, precision: str, decay: float, frozen_steps: int
) -> tuple[nn.Module, torch.optim.Optimizer]:
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=decay, fused=True)
    generator = torch.Generator().manual_seed(1)
    with gradients_kept_in_place(network) if kept else nullcontext():
        for step in range(STEPS):
            network.requires_grad_(step >= frozen_steps)
            network.get_submodule("head").requires_grad_(requires_grad=True)
            # The last batch of an epoch is smaller.
            inputs = torch.rand(6 if step < STEPS - 1 else 2, 3, 8, 8, generator=generator)
            torch.manual_seed(step)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                logits = network(inputs.contiguous(memory_format=torch.channels_last))
            F.cross_entropy(logits.float(), torch.arange(len(inputs)) % 2).backward()
            optimizer.step()
    return network, optimizer


@pytest.mark.parametrize("frozen_steps", [0, 2])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_in_place_give_the_same_bits(precision: str, decay: float, frozen_steps: int) -> None:
    torch.manual_seed(0)
    network = Branching().to(memory_format=torch.channels_last)
    (plain, of_plain), (kept, of_kept) = (
        _fitted(copy.deepcopy(network), kept=kept, precision=precision, decay=decay, frozen_steps=frozen_steps)
        for kept in (False, True)
    )
    for name, value in plain.state_dict().items():
        assert _bits(kept.state_dict()[name]) == _bits(value), name
    states, expected = of_kept.state_dict()["state"], of_plain.state_dict()["state"]
    # A parameter without gradient is skipped: it has no state, or counts fewer steps.
    assert states.keys() == expected.keys()
    assert {float(one["step"]) for one in expected.values()} > {float(STEPS)}
    for number, slots in expected.items():
        for name, value in slots.items():
            assert _bits(states[number][name]) == _bits(value), (number, name)


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def test_gradients_have_one_place_until_the_block_ends() -> None:
    layer = nn.Linear(3, 2)

    def place() -> int:
        layer.zero_grad(set_to_none=True)
        layer(torch.ones(1, 3)).sum().backward()
        assert layer.weight.grad is not None
        return layer.weight.grad.data_ptr()

    with gradients_kept_in_place(layer):
        places = [place(), place()]
        assert places[0] == places[1]
    # Still held, so a new gradient cannot have its memory.
    held = layer.weight.grad
    assert held is not None
    assert place() != held.data_ptr()


def test_folded_weights_are_freed_and_folded_again() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    inputs = torch.rand(2, 3, 8, 8)
    folded = FoldedNetwork(network)
    with torch.inference_mode():
        before = folded(inputs)
        folded.release()
        stored = {name: one.untyped_storage().nbytes() for name, one in folded.graph_module.named_parameters()}
        assert stored["0.weight"] == 0
        # Shared with the network.
        assert stored["3.weight"] > 0
        assert torch.equal(folded.refresh()(inputs), before)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_large_blocks_are_returned_to_the_system_only_in_the_first_step() -> None:
    code = """
import resource, torch
from chestx_cli.networks.devices import keep_freed_memory, return_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(4 * 2**20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

return_freed_memory()
faults()
print(faults())
keep_freed_memory()
faults()
# As the next fit of the process does.
return_freed_memory()
print(faults())
"""
    # In a process of its own: it holds for all that the process does afterwards.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    returned, kept = map(int, done.stdout.split())
    # Each block has 1,000 pages of 4 KiB.
    assert returned > 9000
    assert kept < 1000
