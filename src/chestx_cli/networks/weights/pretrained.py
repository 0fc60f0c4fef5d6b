"""Pretrained weights from torchvision's ImageNet files or a user's file, without unrestricted unpickling."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

from chestx_cli.core.errors import IntegrityError, WeightsError, again
from chestx_cli.core.files import make_folder, sha256_of
from chestx_cli.networks.backbones import BACKBONES
from chestx_cli.networks.weights.foreign import is_checkpoint, prefix_of, read_checkpoint
from chestx_cli.networks.weights.safe_readers import require_usable

if TYPE_CHECKING:
    import torch
    from torch import nn

IMAGENET = "imagenet"
NONE = "none"
CONNECT_TIMEOUT_S = 1.2


def find_weights(backbone: str, weights: str, *, fetch: bool) -> Path | None:
    """Return the file of the requested weights; None for `none`. Does not import torch, so that errors come early.

    ImageNet weights are read from torch.hub's folder, and downloaded only if `fetch` is set. Raises WeightsError with a
    remedy if they are missing, IntegrityError for a file with another hash.
    """
    if weights == NONE:
        return None
    if weights != IMAGENET:
        path = Path(weights)
        if not path.is_file():
            raise WeightsError(f"no weights file {weights}", "give --weights imagenet, none, or an existing file")
        if not is_checkpoint(path):
            raise WeightsError(
                f"{weights} is not a PyTorch checkpoint", "give a file that torch.save wrote, or a safetensors file"
            )
        return path
    url = BACKBONES[backbone].weights_url
    if url is None:
        raise WeightsError(f"there are no ImageNet weights for {backbone}", "use --weights none or --weights FILE")
    path, sha256_prefix = _place_of(url)
    if not path.exists():
        if not fetch:
            raise WeightsError(
                f"the ImageNet weights of {backbone} are not on this machine; chestx downloads only with --fetch",
                f"{again('--weights none')} needs no network; {again('--fetch')} downloads them; or "
                f"get {url} (sha256 begins {sha256_prefix}) elsewhere and give --weights FILE",
            )
        _download(url, path, sha256_prefix)
    if not sha256_of(path).startswith(sha256_prefix):
        raise IntegrityError(
            f"{path} is not {path.name}: its sha256 does not begin with {sha256_prefix}",
            "remove it and fetch it again with --fetch",
        )
    return path


def place_by_hand(backbone: str) -> str:
    """Return how to place the ImageNet weights of a backbone where `find_weights` looks, as an imperative clause."""
    url = BACKBONES[backbone].weights_url
    if url is None:
        raise ValueError(f"there are no ImageNet weights for {backbone}")
    path, sha256_prefix = _place_of(url)
    return f"get {url} (sha256 begins {sha256_prefix}) on another machine and put it into {path.parent}"


def _place_of(url: str) -> tuple[Path, str]:
    """Return the file that a URL is downloaded to, and the beginning of its sha256, which its name has."""
    path = _hub_folder() / Path(urlparse(url).path).name
    return path, path.stem.rpartition("-")[2]


def _hub_folder() -> Path:
    """Return torch.hub's folder for downloaded weights, by torch.hub's own rule."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", f"{cache}/torch")).expanduser() / "hub" / "checkpoints"


def _download(url: str, path: Path, sha256_prefix: str) -> None:
    """Download a file completely or not at all; an unreachable host is reported before torch is imported."""
    remedy = (
        f"get it (sha256 begins {sha256_prefix}) on another machine and give --weights FILE; or train from "
        f"scratch: {again('--weights none')}"
    )
    host = urlparse(url).hostname or ""
    if not _answers(host):
        raise WeightsError(f"cannot fetch {url}: {host} does not answer", remedy)
    import torch

    try:
        make_folder(path.parent)
        torch.hub.download_url_to_file(url, str(path), progress=False)
    except OSError as error:
        raise WeightsError(f"cannot fetch {url}: {error}", remedy) from error


def _answers(host: str) -> bool:
    """Return whether a host accepts connections; in a thread, because name resolution has no timeout."""
    answered: list[bool] = []

    def connect() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection((host, 443), timeout=CONNECT_TIMEOUT_S).close()
            answered.append(True)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_TIMEOUT_S)
    return bool(answered)


@dataclass(frozen=True, kw_only=True)
class LoadedWeights:
    """Location of the weights in a file, and the names of unused tensors, such as a head that does not fit."""

    wrappers: tuple[str, ...] = ()
    prefix: str = ""
    dropped: tuple[str, ...] = ()


def load_weights(network: nn.Module, path: Path, head: str) -> LoadedWeights:
    """Load a checkpoint into a network, except for a head that does not fit.

    Accepts safetensors and torch.save files (read with weights_only=True) that hold a state dict, possibly nested in
    dictionaries, in any floating-point type and with any name prefix. Raises WeightsError if anything but the head does
    not fit.
    """
    checkpoint = read_checkpoint(path)
    wanted = network.state_dict()
    body = {name for name in wanted if not _in_head(name, head)}
    prefix = prefix_of(path, checkpoint, body)
    stored = {name.removeprefix(prefix): value for name, value in checkpoint.tensors.items() if name.startswith(prefix)}
    _require_fit(path, stored, {name: wanted[name] for name in body}, head)
    fits = all(name in stored and stored[name].shape == wanted[name].shape for name in wanted if name not in body)
    used = sorted(name for name in stored if name in wanted and (fits or name in body))
    try:
        for name in used:
            require_usable(name, stored[name], wanted[name])
    except ValueError as error:
        raise WeightsError(f"{path} does not fit: {error}", "get an intact file of plain weights") from error
    network.load_state_dict({name: stored[name].to(wanted[name].dtype) for name in used}, strict=False)
    left = checkpoint.tensors.keys() - {f"{prefix}{name}" for name in used}
    return LoadedWeights(
        wrappers=checkpoint.wrappers, prefix=prefix, dropped=tuple(sorted(name.removeprefix(prefix) for name in left))
    )


def _require_fit(path: Path, stored: dict[str, torch.Tensor], body: dict[str, torch.Tensor], head: str) -> None:
    """Raise WeightsError unless the stored tensors match the backbone without its head."""
    remedy = "choose the --backbone that the file was made for"
    # The batch counter matters only for BatchNorm without momentum, and old files lack it.
    missing = [name for name in body if name not in stored and not name.endswith("num_batches_tracked")]
    if missing:
        lacking = f"it lacks {len(missing)} of {len(body)} tensors ({missing[0]}, ...)"
        raise WeightsError(f"{path} is not for this backbone: {lacking}", remedy)
    for name, tensor in body.items():
        if name in stored and stored[name].shape != tensor.shape:
            shapes = f"{name} is {list(stored[name].shape)}, the backbone needs {list(tensor.shape)}"
            raise WeightsError(f"{path} does not fit: {shapes}", remedy)
    # An unknown tensor inside one of the backbone's modules indicates a larger network, not another head.
    parts = {name.partition(".")[0] for name in body}
    surplus = [n for n in stored if n not in body and not _in_head(n, head) and n.partition(".")[0] in parts]
    if surplus:
        more = f"it has {len(surplus)} extra tensors ({surplus[0]}, ...)"
        raise WeightsError(f"{path} is not for this backbone: {more}", remedy)


def _in_head(name: str, head: str) -> bool:
    return name.startswith(f"{head}.")
