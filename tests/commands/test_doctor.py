"""`chestx doctor`: installed components, their effect on training and latency, and remedies for missing ones."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

import chestx_cli
from chestx_cli.core import machine
from chestx_cli.core.machine import INSTRUCTIONS
from conftest import Chestx, plain_env
from tools.rooms import MODULES, imports_of

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
FOR_DEVELOPERS = {"dev", "docs", "audit", "bench"}
OPTIONAL = {"openvino", "gdcm", "jpeg_ls", "highdicom", "captum", "pyarrow", "ray", "ipywidgets", "zstandard"}


def named_in(requirement: str) -> str:
    """Return the name of the distribution that a requirement is of, normalised."""
    return re.split("[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-")


def rows_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["what"]: row for row in document["rows"]}


def test_training_precision_follows_the_instructions_of_the_processor(
    chestx: Chestx, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    for has, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        document = chestx("doctor", "--json").json()
        assert document["training_precision"] == precision
        row = rows_of(document)["BF16"]
        assert (row["state"], row["meaning"]) == (
            "yes" if has else "no",
            f"training runs in {precision.upper()} on the CPU",
        )
    shown = chestx("doctor").out
    assert "training runs in FP32 on the CPU" in shown
    assert "Ready: trains in FP32 on cpu" in shown


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ("fpu avx2 avx512f avx512_vnni avx512_bf16", {"AVX2", "AVX512", "VNNI", "BF16"}),
        ("fpu avx2 avx_vnni amx_bf16 amx_tile", {"AVX2", "VNNI", "BF16", "AMX"}),
        ("fpu sse2", set()),
    ],
)
def test_instructions_are_read_from_the_flags(flags: str, found: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda _: True)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"model name\t: X\nflags\t\t: {flags}\n")
    assert set(machine.instructions.__wrapped__() or ()) == found
    assert found <= set(INSTRUCTIONS)


@pytest.mark.parametrize(
    ("known", "state"),
    [
        ({"VNNI", "AVX512", "AVX2"}, "VNNI"),
        ({"AVX512", "AVX2"}, "AVX512"),
        ({"AVX2", "BF16"}, "AVX2"),
        (set(), "unknown"),
        (None, "unknown"),
    ],
)
def test_what_to_expect_of_int8_follows_the_instructions_of_the_processor(
    chestx: Chestx, monkeypatch: pytest.MonkeyPatch, known: set[str] | None, state: str
) -> None:
    monkeypatch.setattr("chestx_cli.commands.doctor.instructions", lambda: known)
    row = rows_of(chestx("doctor", "--json").json())["INT8"]
    expected = {
        "VNNI": "static: about 32% of FP32's time with VNNI",
        "AVX512": "static: about 56% of FP32's time with AVX512 (VNNI hidden)",
        "AVX2": "static: about 53% of FP32's time with AVX2 alone",
        "unknown": "not measured on such a processor",
    }[state]
    assert (row["state"], row["meaning"], row["is_missing"]) == (state, expected, False)


def test_every_missing_part_has_a_remedy(chestx: Chestx, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name in OPTIONAL else real(name, *rest),
    )
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    outcome = chestx("doctor", "--json")
    rows = rows_of(outcome.json())
    assert outcome.code == 0
    assert rows["openvino"]["remedy"] == "pip install 'chestx-cli[openvino]'"
    assert rows["DICOM decoders"]["meaning"] == "JPEG lossless, JPEG-LS refused"
    assert rows["Heatmaps"]["remedy"] == "pip install 'chestx-cli[heatmap]'"
    assert rows["DICOM results"]["remedy"] == "pip install 'chestx-cli[dicom-out]'"
    assert rows["ImageNet"]["remedy"].startswith("chestx train --fetch")
    warnings = outcome.json()["answer"]["warnings"]
    assert {text.partition(":")[0] for text in warnings} >= {"openvino", "DICOM decoders", "ImageNet"}
    # All that users can install more, and nothing else.
    named = {extra for row in rows.values() for extra in re.findall(r"chestx-cli\[(.+)\]", row["remedy"])}
    assert named == EXTRAS.keys() - FOR_DEVELOPERS


def test_every_package_that_is_imported_is_required_or_in_an_extra_that_doctor_lists() -> None:
    distributions = packages_distributions()
    imported = {name.partition(".")[0] for module in MODULES for name in imports_of(module) if name not in MODULES}
    foreign = imported - sys.stdlib_module_names - {"chestx_cli"}
    assert "captum" in foreign
    for_users = [line for extra in EXTRAS.keys() - FOR_DEVELOPERS for line in EXTRAS[extra]]
    known = {named_in(line) for line in (*PROJECT["dependencies"], *for_users)}
    # What onnx itself reads its files with.
    known.add("protobuf")
    for name in sorted(foreign & distributions.keys()):
        assert known & {named_in(one) for one in distributions[name]}, name


def test_a_torch_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libgomp.so.1')")
    env = plain_env()
    env["PYTHONPATH"] = str(tmp_path) + ":" + env["PYTHONPATH"]
    words = [sys.executable, "-m", "chestx_cli", "doctor"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 1, done.stderr
    assert "Not ready: PyTorch missing" in done.stdout
    assert "OSError in importing torch" in done.stdout
    assert "PyTorch: pip install --force-reinstall torch." in done.stdout


def test_doctor_can_be_called_from_python(tmp_path: Path) -> None:
    record = chestx_cli.doctor(study=tmp_path / "nowhere" / "yet")
    assert record.headline.startswith("ready: trains in ")
    assert record.exit_code == 0
    assert {row.what for row in record.rows} >= {"chestx", "PyTorch", "ONNX Runtime", "Threads", "GPU", "Disk"}
