"""Devices of networks: their description in records, and the meaning of FP32 on each."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chestx_cli.core import machine
from chestx_cli.networks.devices import device_name, reproducible
from chestx_cli.networks.training_data import FitData
from chestx_cli.store.directory import Study

UNITS: dict[str, Any] = {"convolutions": torch.backends.cudnn, "products": torch.backends.cuda.matmul}


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
@pytest.mark.parametrize("allowed", [True, False])
def test_fp32_on_a_gpu_is_fp32_while_it_must_be_reproducible(unit: Any, allowed: bool) -> None:
    before = unit.allow_tf32
    unit.allow_tf32 = allowed
    try:
        with reproducible(1):
            assert not unit.allow_tf32
        assert unit.allow_tf32 == allowed
    finally:
        unit.allow_tf32 = before


def test_records_name_the_gpus_that_the_driver_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "NVIDIA_GPUS", tmp_path)
    machine.gpu_names.cache_clear()
    try:
        assert "gpu" not in machine.environment()
        for number, model in enumerate(("NVIDIA H100 80GB HBM3", "NVIDIA L4")):
            folder = tmp_path / f"0000:0{number}:00.0"
            folder.mkdir()
            (folder / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 16\nGPU UUID: \t GPU-{number}\n")
        machine.gpu_names.cache_clear()
        assert machine.environment()["gpu"] == "NVIDIA H100 80GB HBM3, NVIDIA L4"
    finally:
        machine.gpu_names.cache_clear()


def test_a_device_is_named_as_it_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA L4")
    assert device_name("cuda") == "NVIDIA L4"
    assert device_name("cpu") == machine.processor_name()


@pytest.mark.parametrize(("free_bytes", "resident"), [(10**9, True), (10, False)])
def test_pixels_go_to_a_gpu_that_has_room_without_a_warning(
    finished: Path, monkeypatch: pytest.MonkeyPatch, free_bytes: int, resident: bool
) -> None:
    study = Study(finished)
    pixels = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    pixels.flags.writeable = False
    split, preprocessing = study.read_split(), study.read_variant("baseline").preprocessing
    data = FitData(pixels=pixels, split=split, preprocessing=preprocessing)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free_bytes, free_bytes))
    # Stands for the transfer, which needs a GPU.
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, _device: tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moved = data.moved_to("cuda")
    assert (moved.resident is not None) == resident
    if moved.resident is not None:
        assert moved.resident.tolist() == pixels.tolist()
