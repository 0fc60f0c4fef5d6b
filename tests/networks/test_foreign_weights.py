"""`--weights` with checkpoints of other tools: read and described, or refused with code that converts them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from chestx_cli.core.errors import WeightsError
from chestx_cli.networks.backbones import BACKBONES
from chestx_cli.networks.weights.foreign import CONVERTED
from chestx_cli.networks.weights.pretrained import find_weights, load_weights
from conftest import PLUGINS, Chestx

Weights = dict[str, torch.Tensor]
Written = Callable[[Path, Weights], object]


def tiny() -> nn.Module:
    torch.manual_seed(3)
    return BACKBONES["tiny"].build()


def prefixed(weights: Weights, prefix: str) -> Weights:
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def lightning(weights: Weights) -> dict[str, Any]:
    """Return what Lightning's ModelCheckpoint writes of a module whose network is `self.model`."""
    return {
        "epoch": 3,
        "global_step": 900,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {**prefixed(weights, "model."), "criterion.weight": torch.ones(2)},
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9), "best_model_path": "a.ckpt"}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 1e-4},
    }


READ: dict[str, tuple[Written, tuple[str, ...], str]] = {
    "plain.pth": (lambda p, w: torch.save(w, p), (), ""),
    "plain.safetensors": (lambda p, w: save_file(w, p), (), ""),
    "prefix.safetensors": (lambda p, w: save_file(prefixed(w, "backbone."), p), (), "backbone."),
    "safetensors_named.bin": (lambda p, w: save_file(w, p), (), ""),
    "lightning.ckpt": (lambda p, w: torch.save(lightning(w), p), ("state_dict",), "model."),
    "script.pth": (
        lambda p, w: torch.save({"model_state_dict": w, "optimizer_state_dict": {"state": {}}, "epoch": 4}, p),
        ("model_state_dict",),
        "",
    ),
    "timm.pth.tar": (
        lambda p, w: torch.save({"state_dict": w, "state_dict_ema": w, "arch": "x"}, p),
        ("state_dict",),
        "",
    ),
    "nested.pt": (lambda p, w: torch.save({"model": {"state_dict": w}}, p), ("model", "state_dict"), ""),
    "odd_key.pth": (lambda p, w: torch.save({"my_best_weights": w, "epoch": 3}, p), ("my_best_weights",), ""),
    "parallel.pth": (lambda p, w: torch.save({"net": prefixed(w, "module.")}, p), ("net",), "module."),
    "compiled.pth": (lambda p, w: torch.save(prefixed(w, "_orig_mod."), p), (), "_orig_mod."),
    "twice.pth": (lambda p, w: torch.save(prefixed(w, "module.encoder."), p), (), "module.encoder."),
    "sequential.pth": (
        lambda p, w: torch.save({**prefixed(w, "0."), "1.weight": torch.ones(2, 10), "1.bias": torch.ones(2)}, p),
        (),
        "0.",
    ),
    "beside_numbers.pth": (lambda p, w: torch.save({**w, "epoch": 3, "best": 0.9}, p), (), ""),
    "old_format.pth": (
        lambda p, w: torch.save({"state_dict": w}, p, _use_new_zipfile_serialization=False),
        ("state_dict",),
        "",
    ),
}


@pytest.mark.parametrize("name", READ)
def test_wrappers_and_prefixes_are_taken_off(tmp_path: Path, name: str) -> None:
    write, wrappers, prefix = READ[name]
    source, target = tiny(), BACKBONES["tiny"].build()
    write(tmp_path / name, dict(source.state_dict()))
    assert find_weights("tiny", str(tmp_path / name), fetch=False) == tmp_path / name
    loaded = load_weights(target, tmp_path / name, "fc")
    assert (loaded.wrappers, loaded.prefix) == (wrappers, prefix)
    assert torch.equal(target.get_parameter("conv2.weight"), source.get_parameter("conv2.weight"))
    assert torch.equal(target.get_buffer("bn2.running_mean"), source.get_buffer("bn2.running_mean"))


def test_what_was_taken_off_is_stated(chestx: Chestx, data: Path, tmp_path: Path) -> None:
    weights = tmp_path / "last.ckpt"
    torch.save(lightning(dict(tiny().state_dict())), weights)
    words = ("--backbone", "tiny", "--image-size", 32, "--epochs", 1, "--weights", weights)
    notes = chestx("train", data, "--study", tmp_path / "s", *words, "--json").json()["notes"]
    assert (
        "Initial weights are from 'state_dict' of last.ckpt. The prefix 'model.' was removed from the names of tensors."
    ) in notes
    assert any(note.startswith("3 tensors of last.ckpt are left out") and "fc.weight" in note for note in notes)
    assert any("criterion.weight" in note for note in notes)


def whole(path: Path, _: Weights) -> None:
    torch.save(tiny(), path)


def kept_whole(path: Path, _: Weights) -> None:
    torch.save({"epoch": 3, "model": tiny()}, path)


def scripted(path: Path, _: Weights) -> None:
    torch.jit.save(torch.jit.trace(tiny().eval(), torch.zeros(1, 3, 32, 32)), path)


CONVERTIBLE: dict[str, tuple[Written, str]] = {
    "numpy_scalar.pth": (
        lambda p, w: torch.save({"best_acc": np.float64(0.93), "state_dict": w}, p),
        r"more than weights \(numpy\._core\.multiarray\.scalar\)",
    ),
    "numpy_old_format.pth": (
        lambda p, w: torch.save(
            {"model_state_dict": w, "best": np.float32(1)}, p, _use_new_zipfile_serialization=False
        ),
        "more than weights",
    ),
    "numpy_beside_tensors.pth": (lambda p, w: torch.save({**w, "best": np.float64(1)}, p), "more than weights"),
    "path_in_it.ckpt": (
        lambda p, w: torch.save({**lightning(w), "hyper_parameters": {"root": Path("data")}}, p),
        r"more than weights \(pathlib",
    ),
    "whole.pth": (whole, r"more than weights \(torch\.nn\.modules"),
    "kept_whole.pth": (kept_whole, "more than weights"),
    "script.pt": (scripted, "it is a TorchScript program"),
    "several.pth": (lambda p, w: torch.save({"teacher": w, "student": w}, p), "several state dicts: teacher, student"),
    "two_networks.pth": (
        lambda p, w: torch.save({"state_dict": {**prefixed(w, "encoder_q."), **prefixed(w, "encoder_k.")}}, p),
        r"2 networks of this backbone, named encoder_k\. and encoder_q\.",
    ),
    "two_networks.safetensors": (
        lambda p, w: save_file({**prefixed(w, "a."), **{f"b.{n}": t.clone() for n, t in w.items()}}, p),
        r"2 networks of this backbone, named a\. and b\.",
    ),
}


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_what_is_not_read_is_said_in_one_sentence_with_lines_that_convert_it(tmp_path: Path, name: str) -> None:
    write, said = CONVERTIBLE[name]
    path = tmp_path / name
    source = tiny()
    write(path, dict(source.state_dict()))
    assert find_weights("tiny", str(path), fetch=False) == path
    with pytest.raises(WeightsError, match=said) as refused:
        load_weights(BACKBONES["tiny"].build(), path, "fc")
    assert "\n" not in refused.value.fact
    assert not re.search(r"\x1b|weights_only|PyTorch 2\.6|operand", refused.value.fact)
    first, *lines = refused.value.remedy.splitlines()
    assert first.endswith(f"with three lines of Python, and give --weights {CONVERTED}:")
    assert len(lines) == 3
    assert ("where you trust the file" in first) == any("weights_only=False" in line or "jit" in line for line in lines)
    env = {**os.environ, "PYTHONPATH": PLUGINS}
    program = "\n".join(line.strip() for line in lines)
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, env=env, capture_output=True)
    target = BACKBONES["tiny"].build()
    load_weights(target, tmp_path / CONVERTED, "fc")
    assert torch.equal(target.get_parameter("conv2.weight"), source.get_parameter("conv2.weight"))


class Command:
    """Unpickling this runs a command."""

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, ("true",))


def test_a_file_that_would_run_something_gets_no_conversion(tmp_path: Path) -> None:
    torch.save({"state_dict": dict(tiny().state_dict()), "x": Command()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"it would run posix\.system; do not use this file"):
        load_weights(BACKBONES["tiny"].build(), tmp_path / "w.pth", "fc")


def test_files_without_this_backbones_weights_are_refused(tmp_path: Path) -> None:
    weights = dict(tiny().state_dict())
    torch.save({"epoch": 3, "loss": torch.ones(1)}, tmp_path / "none.pth")
    torch.save({"optimizer": {"lr": 1}}, tmp_path / "empty.pth")
    lacking = {name: tensor for name, tensor in prefixed(weights, "model.").items() if "bn2" not in name}
    torch.save({"state_dict": lacking}, tmp_path / "lacking.ckpt")
    content = (tmp_path / "lacking.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(content[: len(content) // 2])
    (tmp_path / "numbers.pth").write_bytes(b"\x80\x02}q\x00.")
    for name, said in {
        "none.pth": r"it lacks 10 of 12 tensors \(",
        "empty.pth": "holds no state dict",
        # Named without the prefix that was found: what is missing is not the whole network.
        "lacking.ckpt": r"it lacks 4 of \d+ tensors \(bn2\.",
        "cut.ckpt": "it is damaged, or not a PyTorch checkpoint",
        "numbers.pth": "cannot read",
    }.items():
        with pytest.raises(WeightsError, match=said) as refused:
            load_weights(BACKBONES["tiny"].build(), tmp_path / name, "fc")
        assert len(refused.value.fact.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "content"), [("model.h5", b"\x89HDF\r\n\x1a\n"), ("model.onnx", b"\x08\x08\x12\x07"), ("a.pth", b"")]
)
def test_other_files_are_no_checkpoints(chestx: Chestx, data: Path, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    outcome = chestx("train", data, "--study", tmp_path / "s", "--backbone", "tiny", "--weights", tmp_path / name)
    assert (outcome.code, f"{name} is not a PyTorch checkpoint" in outcome.err) == (1, True)
    assert not (tmp_path / "s").exists()


def test_an_old_densenet_in_a_wrapper_keeps_its_names_of_2017(tmp_path: Path) -> None:
    source = BACKBONES["densenet121"].build().state_dict()
    old = {
        "module." + re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): tensor
        for name, tensor in source.items()
    }
    torch.save({"state_dict": old}, tmp_path / "m.pth.tar")
    target = BACKBONES["densenet121"].build()
    loaded = load_weights(target, tmp_path / "m.pth.tar", "classifier")
    assert (loaded.prefix, loaded.dropped) == ("module.", ())
