"""Narrower networks: the same share of every layer's channels, and what cannot be narrowed."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from chestx_cli.compression.pruning.width import at_width, require_width
from chestx_cli.core.errors import ChestxError, UsageError
from chestx_cli.networks.backbones import build_classifier
from chestx_cli.networks.layers import prunable_layers
from chestx_cli.networks.memory import training_bytes
from chestx_cli.networks.weights.serialization import load_model_file, serialised

SIDE_PX = 64


def outputs(network: nn.Module) -> dict[str, int]:
    return {name: len(layer.get_parameter("weight")) for name, layer in prunable_layers(network).items()}


@pytest.mark.parametrize("backbone", ["resnet18", "regnet_y_400mf", "mobilenet_v3_small"])
def test_every_layer_of_the_backbone_has_its_share_and_the_file_gives_the_network_back(
    backbone: str, tmp_path: Path
) -> None:
    network = build_classifier(backbone, 2)
    narrow = at_width(network, 0.5, SIDE_PX)
    before, after = outputs(network), outputs(narrow)
    for name, layer in prunable_layers(network).items():
        if name.startswith(("fc.", "classifier.")):
            assert after[name] == before[name], name
            continue
        grouped = isinstance(layer, nn.Conv2d) and 1 < layer.groups < layer.in_channels
        # To the nearest multiple of 8, but for grouped convolutions and what is coupled with them.
        rounding = 0 if grouped else 4
        assert abs(after[name] - before[name] / 2) <= rounding, name
    path = tmp_path / "model.safetensors"
    path.write_bytes(serialised(narrow))
    again = load_model_file(path, backbone, 2)
    images = torch.rand(2, 3, SIDE_PX, SIDE_PX, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(narrow.eval()(images), again(images))


def test_the_channels_of_largest_norm_remain_and_the_network_itself_is_unchanged() -> None:
    network = build_classifier("tiny", 2)
    with torch.no_grad():
        for index, scale in enumerate((1, 9, 2, 8, 3, 7, 4, 6)):
            for name in ("conv1.weight", "bn1.weight", "bn1.bias"):
                network.get_parameter(name)[index] = scale
            network.get_parameter("conv2.weight")[:, index] = scale
    before = copy.deepcopy(network.state_dict())
    narrow = at_width(network, 0.5, SIDE_PX)
    assert narrow.get_parameter("bn1.weight").tolist() == [9, 8, 7, 6]
    # 8 of 16 channels; below 8, widths are no multiples of 8.
    assert outputs(narrow) == {"conv1": 4, "conv2": 8, "fc.0": 512, "fc.4": 2}
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_width_that_leaves_nothing_is_refused_with_the_least_one() -> None:
    with pytest.raises(UsageError, match="leaves none of the 8 channels of conv1") as caught:
        require_width("tiny", 0.05)
    assert caught.value.remedy == "give at least 0.07"
    require_width("tiny", 0.07)
    assert outputs(at_width(build_classifier("tiny", 2), 0.07, SIDE_PX))["conv1"] == 1


def test_a_network_that_cannot_be_narrowed_is_refused_and_whole_it_is_not() -> None:
    with pytest.raises(ChestxError, match="cannot follow the channels") as caught:
        require_width("shufflenet_v2_x1_0", 0.5)
    assert caught.value.remedy == "use the full width, or another backbone"
    require_width("shufflenet_v2_x1_0", 1.0)


def test_a_narrow_student_and_a_narrow_teacher_are_estimated_to_need_less_memory() -> None:
    def estimate(width: float, teacher_width: float) -> int:
        return training_bytes("resnet18", 64, 8, "fp32", teacher="resnet18", width=width, teacher_width=teacher_width)

    assert estimate(0.5, 0.5) < estimate(0.5, 1) < estimate(1, 1)
