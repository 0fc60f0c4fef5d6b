"""Backbones: torchvision networks whose classifier is replaced by the study's head."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from chestx_cli.core.registry import Registry

if TYPE_CHECKING:
    from torch import nn

# The part of torch's compiler that torchvision imports.
_COMPILER = "torch._dynamo.utils"
_LOADING = threading.Lock()

HEAD_WIDTH = 512
HEAD_DROPOUT = 0.5
# The place of the last layer in the head.
HEAD_OUTPUT = 4
WEIGHTS_HOST = "https://download.pytorch.org/models/"


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A network without weights, where its classifier sits, and the file of its ImageNet weights.

    `head` is the dotted name of the module that the head replaces, `features` the width that it is given.
    `weights_file` is torchvision's default file; its name ends with the first 8 hex digits of its SHA-256.
    """

    build: Callable[[], nn.Module]
    head: str
    features: int
    weights_file: str | None = None

    @property
    def weights_url(self) -> str:
        """Return where the ImageNet weights can be fetched."""
        return f"{WEIGHTS_HOST}{self.weights_file}"

    @property
    def weights_sha256_prefix(self) -> str:
        """Return the first digits of the SHA-256 of the ImageNet weights."""
        return (self.weights_file or "").rpartition("-")[2].removesuffix(".pth")


BACKBONES: Registry[Backbone] = Registry("backbone")


def load_torchvision() -> ModuleType:
    """Import torchvision, and not torch's compiler with it, which takes as long to import as torch itself.

    One of torchvision's detection operators imports a single function of it. A stand-in module provides that function,
    which loads the compiler when it is called; any other access to the module loads it at once. Neither torch nor
    torchvision has a switch for this; importing torchvision takes 2.4 s without the stand-in and 0.25 s
    with it (torch 2.14, median of 5).
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


def _torchvision(name: str, *, head: str, features: int, weights_file: str) -> None:
    def build() -> nn.Module:
        network: nn.Module = load_torchvision().models.get_model(name, weights=None)
        return network

    BACKBONES.add(name, Backbone(build=build, head=head, features=features, weights_file=weights_file))


_torchvision("resnet50", head="fc", features=2048, weights_file="resnet50-11ad3fa6.pth")
_torchvision("resnet18", head="fc", features=512, weights_file="resnet18-f37072fd.pth")
_torchvision("resnet34", head="fc", features=512, weights_file="resnet34-b627a593.pth")
_torchvision("densenet121", head="classifier", features=1024, weights_file="densenet121-a639ec97.pth")
_torchvision("mobilenet_v3_large", head="classifier", features=960, weights_file="mobilenet_v3_large-5c1a4163.pth")
_torchvision("efficientnet_b0", head="classifier", features=1280, weights_file="efficientnet_b0_rwightman-7f5810bc.pth")
_torchvision("convnext_tiny", head="classifier.2", features=768, weights_file="convnext_tiny-983f1562.pth")


def output_layer(backbone: str) -> str:
    """Return the name of the layer whose outputs are the logits."""
    return f"{BACKBONES[backbone].head}.{HEAD_OUTPUT}"


def build_classifier(backbone: str, n_classes: int) -> nn.Module:
    """Return a freshly initialised network: images [N, 3, H, W] to logits [N, n_classes].

    The head is Linear(features -> 512), BatchNorm, ReLU, Dropout(0.5), Linear(512 -> n_classes).
    """
    from torch import nn

    entry = BACKBONES[backbone]
    network = entry.build()
    head = nn.Sequential(
        nn.Linear(entry.features, HEAD_WIDTH),
        nn.BatchNorm1d(HEAD_WIDTH),
        nn.ReLU(),
        nn.Dropout(HEAD_DROPOUT),
        nn.Linear(HEAD_WIDTH, n_classes),
    )
    owner, _, attribute = entry.head.rpartition(".")
    setattr(network.get_submodule(owner), attribute, head)
    return network
