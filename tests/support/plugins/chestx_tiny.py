"""The tiny backbone of the tests: a plugin in a folder on PYTHONPATH, with its entry point."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.registries import BACKBONES, Backbone

if TYPE_CHECKING:
    from torch import nn


def build_tiny() -> nn.Module:
    """Return a network of two convolutions with torchvision's shape: features, then `fc`."""
    from collections import OrderedDict

    from torch import nn

    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
            bn1=nn.BatchNorm2d(8),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
            bn2=nn.BatchNorm2d(16),
            relu2=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(16, 10),
        )
    )


BACKBONES.add("tiny", Backbone(build=build_tiny))
