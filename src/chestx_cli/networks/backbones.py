"""Registry of backbones: networks whose classifier is replaced by the study's head."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from chestx_cli.core.errors import ChestxError
from chestx_cli.core.registry import Registry

if TYPE_CHECKING:
    from torch import nn

# The module of torch's compiler that torchvision imports.
_COMPILER = "torch._dynamo.utils"
_LOADING = threading.Lock()

HEAD_WIDTH = 512
HEAD_DROPOUT = 0.5
WEIGHTS_HOST = "https://download.pytorch.org/models/"


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A network architecture and the address of its ImageNet weights.

    build: returns the network with random weights and a classifier that ends in its last Linear layer and is replaced
    by the study's head (see `classifier_of`). weights_url: address of the weights, whose file name ends with the first
    8 hex digits of its SHA-256; None if there are none.
    """

    build: Callable[[], nn.Module]
    weights_url: str | None = None


BACKBONES: Registry[Backbone] = Registry("backbone", of=Backbone)


def load_torchvision() -> ModuleType:
    """Import torchvision without torch's compiler, which takes as long to import as torch itself.

    One of torchvision's detection operators imports a single function of the compiler. A stand-in module provides that
    function, which loads the compiler when called; any other access to the module loads it immediately. Neither torch
    nor torchvision has a switch for this; importing torchvision takes 2.4 s without the stand-in and 0.25 s with it
    (torch 2.14, median of 5).
    """
    import torch

    with _LOADING:
        if _COMPILER in sys.modules or "torchvision" in sys.modules:
            return importlib.import_module("torchvision")
        stand_in = ModuleType(_COMPILER)

        def is_compile_supported(device_type: torch.device | str) -> bool:
            return bool(importlib.import_module(_COMPILER).is_compile_supported(device_type))

        def other(name: str) -> object:
            if name.startswith("__"):
                raise AttributeError(name)
            step_aside()
            return getattr(importlib.import_module(_COMPILER), name)

        def step_aside() -> None:
            if sys.modules.get(_COMPILER) is stand_in:
                del sys.modules[_COMPILER]

        vars(stand_in).update(is_compile_supported=is_compile_supported, __getattr__=other)
        sys.modules[_COMPILER] = stand_in
        try:
            return importlib.import_module("torchvision")
        finally:
            step_aside()


def _torchvision(name: str, weights_file: str) -> None:
    def build() -> nn.Module:
        network: nn.Module = load_torchvision().models.get_model(name, weights=None)
        return network

    BACKBONES.add(name, Backbone(build=build, weights_url=f"{WEIGHTS_HOST}{weights_file}"))


# The files of torchvision's default weights, listed here (a test compares them) because importing torchvision takes
# seconds and the error for missing weights must come immediately.
_torchvision("resnet50", "resnet50-11ad3fa6.pth")
_torchvision("resnet18", "resnet18-f37072fd.pth")
_torchvision("resnet34", "resnet34-b627a593.pth")
_torchvision("densenet121", "densenet121-a639ec97.pth")
_torchvision("mobilenet_v3_large", "mobilenet_v3_large-5c1a4163.pth")
_torchvision("mobilenet_v3_small", "mobilenet_v3_small-047dcff4.pth")
_torchvision("shufflenet_v2_x1_0", "shufflenetv2_x1-5666bf0f80.pth")
_torchvision("regnet_y_400mf", "regnet_y_400mf-e6988f5f.pth")
_torchvision("efficientnet_b0", "efficientnet_b0_rwightman-7f5810bc.pth")
_torchvision("convnext_tiny", "convnext_tiny-983f1562.pth")


def classifier_of(network: nn.Module) -> str:
    """Return the dotted name of a backbone's classifier: its last Linear layer, or the Sequential that contains it.

    The Sequential counts only if it has nothing but Linear layers, activations and dropout: one that also normalises or
    flattens features, like ConvNeXt's, is kept.
    """
    from torch import nn

    name = output_layer(network)
    owner = name.rpartition(".")[0]
    parts = (nn.Linear, nn.Dropout, nn.ReLU, nn.Hardswish, nn.GELU, nn.SiLU)
    around = network.get_submodule(owner)
    # The network itself is not the classifier, even if it is a Sequential.
    return owner if owner and isinstance(around, nn.Sequential) and all(isinstance(p, parts) for p in around) else name


def output_layer(network: nn.Module) -> str:
    """Return the name of the layer that outputs the logits; raises ChestxError without a Linear layer."""
    from torch import nn

    names: list[str] = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    if not names:
        raise ChestxError("this network has no Linear layer at its end", "use another --backbone")
    return names[-1]


def head_of(network: nn.Module) -> str:
    """Return the name of the study's head in a network built by `build_classifier`."""
    return output_layer(network).rpartition(".")[0]


def build_classifier(backbone: str, n_classes: int) -> nn.Module:
    """Return a newly initialised network that maps images [N, 3, H, W] to logits [N, n_classes].

    The head is Linear(features -> 512), BatchNorm, ReLU, Dropout(0.5), Linear(512 -> n_classes). Raises ChestxError if
    the backbone has no Linear layer.
    """
    from torch import nn

    network = BACKBONES[backbone].build()
    name = classifier_of(network)
    features = next(m.in_features for m in network.get_submodule(name).modules() if isinstance(m, nn.Linear))
    head = nn.Sequential(
        nn.Linear(features, HEAD_WIDTH),
        nn.BatchNorm1d(HEAD_WIDTH),
        nn.ReLU(),
        nn.Dropout(HEAD_DROPOUT),
        nn.Linear(HEAD_WIDTH, n_classes),
    )
    owner, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(owner), attribute, head)
    return network
