"""Commands on a GPU; skipped without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from chestx_cli.store.directory import Study
from conftest import TINY, Chestx

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
ON_GPU = ("--device", "cuda")


@pytest.fixture
def trained(chestx: Chestx, data: Path, tmp_path: Path) -> Path:
    """Return a study whose baseline was trained on the GPU, twice."""
    study = tmp_path / "study"
    for name in ("baseline", "again"):
        words = ("train", data, "--study", study, *TINY, "--epochs", 2, "--batch-size", 16, "--name", name, *ON_GPU)
        outcome = chestx(*words)
        assert outcome.code == 0, outcome.err
        assert "Warning" not in outcome.err
    return study


def test_training_on_a_gpu_is_told_and_repeats_bit_for_bit(trained: Path) -> None:
    first, again = (Study(trained).read_variant(name) for name in ("baseline", "again"))
    assert first.training is not None
    assert first.training.device == "cuda"
    assert torch.cuda.get_device_name() in first.stamp.environment["gpu"]
    assert first.model_sha256 == again.model_sha256


@pytest.mark.parametrize(
    "words",
    [
        ("prune", "--method", "oneshot"),
        ("prune", "--method", "iterative", "--finetune-epochs", 1),
        ("prune", "--method", "structured", "--finetune-epochs", 1, "--distill", "--round-to", 1),
        ("prune", "--method", "structured", "--finetune-epochs", 0, "--criterion", "taylor", "--round-to", 1),
        ("quantize", "--method", "qat", "--epochs", 1),
    ],
    ids=lambda words: "-".join(str(word).lstrip("-") for word in words),
)
def test_variants_are_made_on_a_gpu(chestx: Chestx, trained: Path, words: tuple[object, ...]) -> None:
    outcome = chestx(*words, "--study", trained, *ON_GPU, "--json")
    assert outcome.code == 0, outcome.err
    evaluated = chestx("evaluate", "--study", trained, "--json")
    assert evaluated.code == 0, evaluated.err


def test_sensitivity_on_a_gpu_is_that_of_the_processor(chestx: Chestx, trained: Path) -> None:
    losses = []
    for device in ("cuda", "cpu"):
        words = ("sensitivity", "--study", trained, "--amounts", "0.5,0.9", "--device", device, "--json")
        found = chestx(*words).json()
        losses.append({(row["layer"], row["amount"]): row["loss"] for row in found["measurements"]})
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_a_benchmark_on_a_gpu_names_it(chestx: Chestx, trained: Path) -> None:
    words = ("benchmark", "--study", trained, "--rounds", 1, "--duration", 0.05, *ON_GPU, "--json")
    found = chestx(*words).json()
    assert found["machine"].startswith(torch.cuda.get_device_name())
    assert any("TF32" in note for note in found["notes"])
    assert {row["runtime"] for row in found["rows"]} == {"pytorch"}
