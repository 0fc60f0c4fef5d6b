"""Malicious and broken model files, one of each kind, generated on demand; code in them creates a file if executed."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx
    import torch


@dataclass(frozen=True, kw_only=True)
class Intact:
    """The source of the broken files: weights by name, an ONNX file, and the path that executed code creates."""

    tensors: dict[str, torch.Tensor]
    onnx: bytes
    trace: Path


@dataclass(frozen=True, kw_only=True)
class BadModel:
    """A broken file: its extension, and a function that builds its content from intact ones."""

    suffix: str
    make: Callable[[Intact], bytes]


class _Command:
    """Runs a shell command when unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def _command(intact: Intact) -> _Command:
    return _Command(f"touch {intact.trace}")


def _saved(content: Any, **options: Any) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def _zip_of(records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _nested_zips(intact: Intact) -> bytes:
    """Return a zip in a zip in a zip, each of which a reader might unpack, around a pickled command."""
    inner = _saved({"weight": _command(intact)})
    for _ in range(3):
        inner = _zip_of({"archive/data.pkl": inner, "archive/version": b"3\n"})
    return inner


def _compressed_records(intact: Intact) -> bytes:
    """Return a state dict with compressed records, one of them 1 GB of zeros."""
    with zipfile.ZipFile(io.BytesIO(_saved(intact.tensors))) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    largest = max(records, key=lambda name: len(records[name]))
    return _zip_of({**records, largest: bytes(10**9)}, zipfile.ZIP_DEFLATED)


def _cut(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


def _safetensors(
    intact: Intact, change: Callable[[dict[str, Any]], None] = lambda _: None, *, size: int | None = None
) -> bytes:
    """Return the weights as a safetensors file with a changed header, or a wrong header size."""
    from safetensors.torch import save

    content = save(intact.tensors)
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + content[end:]


def _twice(intact: Intact) -> bytes:
    """Return a header that lists the same tensor twice."""
    content = _safetensors(intact)
    end = 8 + int.from_bytes(content[:8], "little")
    header = content[8:end]
    name, about = next(iter(json.loads(header).items()))
    header = b"{" + json.dumps(name).encode() + b": " + json.dumps(about).encode() + b", " + header[1:]
    return struct.pack("<Q", len(header)) + header + content[end:]


def _set(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        header["conv1.weight"][key] = value

    return change


def _overlap(header: dict[str, Any]) -> None:
    header["conv1.weight"]["data_offsets"] = [0, 864]
    header["conv2.weight"]["data_offsets"] = [4, 4 + 4608]


def _with_tensor(name: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Intact], bytes]:
    def make(intact: Intact) -> bytes:
        from safetensors.torch import save

        return save({**intact.tensors, name: value(intact.tensors[name])})

    return make


def _nan(tensor: torch.Tensor) -> torch.Tensor:
    changed = tensor.clone()
    changed.view(-1)[0] = float("nan")
    return changed


def _onnx(change: Callable[[onnx.ModelProto], None]) -> Callable[[Intact], bytes]:
    def make(intact: Intact) -> bytes:
        import onnx as library

        model = library.load_from_string(intact.onnx)
        change(model)
        content: bytes = model.SerializeToString()
        return content

    return make


def _outside(model: onnx.ModelProto) -> None:
    import onnx as library

    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = library.TensorProto.EXTERNAL
    for key, value in (("location", "../../../../etc/passwd"), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)


def _custom(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "strangers"
    model.opset_import.add(domain="strangers", version=1)


def _loop(model: onnx.ModelProto) -> None:
    from onnx import helper

    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["endless"], body=body))


def _large(model: onnx.ModelProto) -> None:
    """Pad the first convolution's input to 10^12 pixels."""
    pads = next(attribute for node in model.graph.node for attribute in node.attribute if attribute.name == "pads")
    pads.ints[:] = [500_000] * 4


def _not_finite(model: onnx.ModelProto) -> None:
    import numpy as np
    from onnx import numpy_helper

    tensor = model.graph.initializer[0]
    values = np.full(tuple(tensor.dims), np.inf, dtype=np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


KINDS: dict[str, BadModel] = {
    "command in a .pth": BadModel(suffix=".pth", make=lambda i: _saved({"weight": _command(i)})),
    "command in an old .pth": BadModel(
        suffix=".pth", make=lambda i: _saved({"weight": _command(i)}, _use_new_zipfile_serialization=False)
    ),
    "bare pickle": BadModel(suffix=".pt", make=lambda i: pickle.dumps(_command(i))),
    "pickle named .safetensors": BadModel(suffix=".safetensors", make=lambda i: _saved({"weight": _command(i)})),
    "nested zips": BadModel(suffix=".pth", make=_nested_zips),
    "records that unfold": BadModel(suffix=".pth", make=_compressed_records),
    "truncated .pth": BadModel(suffix=".pth", make=lambda i: _cut(_saved(i.tensors))),
    "oversized header": BadModel(suffix=".safetensors", make=lambda i: _safetensors(i, size=2**62)),
    "offset overflow": BadModel(
        suffix=".safetensors", make=lambda i: _safetensors(i, _set("data_offsets", [2**64 - 8, 2**64 - 1]))
    ),
    "overlap": BadModel(suffix=".safetensors", make=lambda i: _safetensors(i, _overlap)),
    "duplicate key": BadModel(suffix=".safetensors", make=_twice),
    "wrong dtype": BadModel(suffix=".safetensors", make=_with_tensor("conv1.weight", lambda t: t.long())),
    "unknown dtype": BadModel(suffix=".safetensors", make=lambda i: _safetensors(i, _set("dtype", "F4"))),
    "wrong shape": BadModel(suffix=".safetensors", make=_with_tensor("conv1.weight", lambda t: t.repeat(2, 1, 1, 1))),
    "NaN": BadModel(suffix=".safetensors", make=_with_tensor("conv1.weight", _nan)),
    "truncated .safetensors": BadModel(suffix=".safetensors", make=lambda i: _cut(_safetensors(i))),
    "ONNX data in ../": BadModel(suffix=".onnx", make=_onnx(_outside)),
    "ONNX custom operator": BadModel(suffix=".onnx", make=_onnx(_custom)),
    "ONNX loop": BadModel(suffix=".onnx", make=_onnx(_loop)),
    "ONNX of 10^12 values": BadModel(suffix=".onnx", make=_onnx(_large)),
    "ONNX infinite weights": BadModel(suffix=".onnx", make=_onnx(_not_finite)),
    "truncated .onnx": BadModel(suffix=".onnx", make=lambda i: _cut(i.onnx)),
}
