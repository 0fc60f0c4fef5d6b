"""Checkpoints of other tools: location of the state dict, prefix of its names, and conversion instructions."""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from chestx_cli.core.errors import WeightsError
from chestx_cli.core.files import storage_error
from chestx_cli.networks.weights.safe_readers import read_stored, read_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    import torch

T = TypeVar("T")

SAFETENSORS = ".safetensors"
# Keys under which training scripts and tools keep a state dict; the first one present counts. Averaged weights and a
# teacher's weights have other names.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params")
CONVERTED = "weights.pth"
_REFUSED_NAME = re.compile(r"(?:GLOBAL|class) ([\w.]+)")
# Modules that an attack would import, but never a checkpoint.
_RUNNING = re.compile(r"(posix|nt|os|sys|subprocess|shutil|socket|runpy|importlib|pty|webbrowser|builtins)\b.*")
# A file from before torch 1.6 consists of four pickles, the last of which describes the tensors.
_PICKLES = 4


@dataclass(frozen=True, kw_only=True)
class StateDict:
    """The tensors of a checkpoint by name, and the keys of the enclosing dictionaries, outermost first."""

    tensors: dict[str, torch.Tensor]
    wrappers: tuple[str, ...] = ()


def is_checkpoint(path: Path) -> bool:
    """Return whether a file starts like a checkpoint: safetensors, a torch.save zip, or an old pickle."""
    with path.open("rb") as file:
        first = file.read(9)
    return path.suffix == SAFETENSORS or first[8:9] == b"{" or first.startswith((b"PK\x03\x04", b"\x80"))


def read_checkpoint(path: Path) -> StateDict:
    """Return the state dict of a checkpoint, read as weights only: no code in the file is executed.

    Raises StorageError, and WeightsError with a remedy if reading the file would execute code or it has no single state
    dict.
    """
    if _is_safetensors(path):
        return StateDict(tensors=_checked(path, read_tensors))
    if _is_program(path):
        raise WeightsError(
            f"cannot read {path} as weights: it is a TorchScript program",
            _in_three_lines(
                "where you trust the file, save its weights alone",
                "import torch",
                f'torch.jit.load({str(path)!r}, map_location="cpu")',
                "loaded.state_dict()",
            ),
        )
    document = _weights_only(path, _checked(path, read_stored))
    wrappers: list[str] = []
    while isinstance(document, dict):
        key = next((key for key in WRAPPERS if isinstance(document.get(key), dict)), None)
        if key is None:
            break
        document = document[key]
        wrappers.append(key)
    tensors = _tensors_of(document)
    if tensors:
        return StateDict(tensors=tensors, wrappers=tuple(wrappers))
    inside = {key: value for key, value in document.items() if _tensors_of(value)} if isinstance(document, dict) else {}
    if len(inside) == 1:
        key, value = next(iter(inside.items()))
        return StateDict(tensors=_tensors_of(value), wrappers=(*wrappers, str(key)))
    if inside:
        opened = _opened(path, wrappers)
        raise WeightsError(
            f"{path} holds several state dicts: {', '.join(map(str, inside))}",
            _in_three_lines("save the one you need", "import torch", opened, f"loaded[{next(iter(inside))!r}]"),
        )
    raise WeightsError(f"{path} holds no state dict", "give a safetensors file, or a state dict saved by torch.save")


def prefix_of(path: Path, state: StateDict, body: Collection[str]) -> str:
    """Return the prefix that a checkpoint puts before the names `body` of a backbone's tensors.

    For an incomplete backbone, return the prefix with most of its tensors, so that the missing ones can be named.
    Raises WeightsError if the checkpoint contains several backbones.
    """
    # BatchNorm's batch counters have no effect here, and old files lack them.
    required = {name for name in body if not name.endswith("num_batches_tracked")}
    probe = min(required, default="")
    prefixes = {name.removesuffix(probe) for name in state.tensors if f".{name}".endswith(f".{probe}")}
    matched = {prefix: sum(f"{prefix}{name}" in state.tensors for name in required) for prefix in prefixes}
    whole = sorted(prefix for prefix, n in matched.items() if n == len(required))
    if "" in whole or not matched:
        return ""
    if len(whole) > 1:
        first, library = whole[0], "safetensors.torch" if _is_safetensors(path) else "torch"
        kept = f"{{name.removeprefix({first!r}): loaded[name] for name in loaded if name.startswith({first!r})}}"
        opened = f"{library}.load_file({str(path)!r})" if _is_safetensors(path) else _opened(path, state.wrappers)
        raise WeightsError(
            f"{path} holds {len(whole)} networks of this backbone, named {' and '.join(whole)}",
            _in_three_lines("save the one you need", f"import torch, {library}", opened, kept),
        )
    return whole[0] if whole else max(sorted(matched), key=lambda prefix: matched[prefix])


def _is_safetensors(path: Path) -> bool:
    if path.suffix == SAFETENSORS:
        return True
    with path.open("rb") as file:
        return file.read(9)[8:9] == b"{"


def _is_program(path: Path) -> bool:
    """Return whether a file is a TorchScript program (written by torch.jit.save), which contains code."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
        return False


def _tensors_of(document: object) -> dict[str, torch.Tensor]:
    """Return the tensors of a dictionary by name, with the 2017 names of DenseNet layers converted."""
    import torch

    if not isinstance(document, dict):
        return {}
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name): value
        for name, value in document.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }


def _checked(path: Path, reader: Callable[[Path], T]) -> T:
    """Apply a reader to a file; its exceptions become errors with a remedy."""
    try:
        return reader(path)
    except OSError as error:
        raise storage_error(error, path) from error
    except ValueError as error:
        raise WeightsError(
            f"cannot read {path} as weights: {error}", "give a safetensors file or a plain state dict"
        ) from error


def _weights_only(path: Path, content: bytes) -> Any:
    """Return the content of a torch.save file: tensors and plain containers; no other object is created."""
    import torch

    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    # The restricted unpickler raises many exception types for damage, and its messages refer to its options.
    except Exception as error:
        raise _refused(path, content, str(error)) from error


def _refused(path: Path, content: bytes, message: str) -> WeightsError:
    """Return the error for a file that torch cannot read as weights only, with a conversion as remedy."""
    problem = f"cannot read {path} as weights"
    names, texts = _named_in(content)
    refused = _REFUSED_NAME.search(message)
    if refused is None:
        return WeightsError(f"{problem}: it is damaged, or not a PyTorch checkpoint", "get the file again")
    running = next((name for name in names if _RUNNING.fullmatch(name)), None)
    if running is not None:
        return WeightsError(f"{problem}: it would run {running}", "do not use this file")
    key = next((key for key in WRAPPERS if key in texts), None)
    is_object = "_modules" in texts and key not in WRAPPERS[:3]
    weights = f"loaded[{key!r}]" if key else "loaded"
    if is_object:
        weights += ".state_dict()"
    elif key is None:
        weights = "{name: loaded[name] for name in loaded if torch.is_tensor(loaded[name])}"
    return WeightsError(
        f"{problem}: it holds more than weights ({refused[1]}), which only executing it would read",
        _in_three_lines(
            "where you trust the file, save its weights alone",
            "import torch",
            f'torch.load({str(path)!r}, map_location="cpu", weights_only=False)',
            weights,
        ),
    )


def _named_in(content: bytes) -> tuple[set[str], set[str]]:
    """Return the names that a torch.save file would import, and its strings, without unpickling anything."""
    names: set[str] = set()
    texts: list[str] = []
    stream = io.BytesIO(_described(content))
    try:
        for _ in range(_PICKLES):
            for operation, argument, _at in pickletools.genops(stream):
                if operation.name == "GLOBAL":
                    names.add(str(argument).replace(" ", "."))
                elif operation.name == "STACK_GLOBAL":
                    names.add(".".join(texts[-2:]))
                elif isinstance(argument, str):
                    texts.append(argument)
    # The stream is damaged, or there are no more pickles.
    except Exception:  # noqa: S110 - the names read so far are used
        pass
    return names, set(texts)


def _described(content: bytes) -> bytes:
    """Return the pickle in a torch.save file that describes its content."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            return archive.read(name)
    except (zipfile.BadZipFile, StopIteration, NotImplementedError, RuntimeError, OSError, ValueError):
        return content


def _opened(path: Path, wrappers: Collection[str]) -> str:
    inside = "".join(f"[{key!r}]" for key in wrappers)
    return f'torch.load({str(path)!r}, map_location="cpu", weights_only=True){inside}'


def _in_three_lines(purpose: str, imported: str, opened: str, weights: str) -> str:
    """Return a remedy: Python code that converts the file to a readable one."""
    lines = [imported, f"loaded = {opened}", f"torch.save({weights}, {CONVERTED!r})"]
    return "\n".join(
        [f"{purpose} with three lines of Python, and give --weights {CONVERTED}:", *(f"    {x}" for x in lines)]
    )
