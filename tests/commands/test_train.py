"""`chestx train`: the baseline, its determinism, its weights, and refused inputs."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from chestx_cli.core.errors import WeightsError
from chestx_cli.evaluation.statistics.metrics import METRICS
from chestx_cli.networks.backbones import BACKBONES, build_classifier, head_of
from chestx_cli.networks.epoch_order import batches_of
from chestx_cli.networks.losses import LOSSES
from chestx_cli.networks.weights.pretrained import LoadedWeights, load_weights
from conftest import TINY, Chestx, edit, tree

QUICK = (*TINY, "--epochs", "1", "--batch-size", "16")


def test_train_keeps_the_epoch_of_lowest_validation_loss(finished: Path) -> None:
    table = pd.read_csv(finished / "variants" / "baseline" / "training.csv")
    assert list(table["epoch"]) == [1, 2, 3]
    kept = table[table["kept"]]
    assert len(kept) == 1
    assert kept["val_loss"].iloc[0] == table["val_loss"].min()
    for part in ("train", "val"):
        for metric in ("loss", "accuracy", "precision", "recall", "f1", "auroc", "average_precision"):
            assert table[f"{part}_{metric}"].notna().all()
    assert (finished / "report" / "figures" / "training-curves.png").exists()


def test_training_is_reproducible_bit_for_bit(chestx: Chestx, data: Path, tmp_path: Path) -> None:
    hashes = []
    for name, seed in (("a", 42), ("b", 42), ("c", 43)):
        outcome = chestx("train", data, "--study", tmp_path / "s", "--name", name, "--seed", seed, *QUICK, "--json")
        assert outcome.code == 0, outcome.err
        hashes.append(outcome.json()["model_sha256"])
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]


def test_learning_from_the_images(chestx: Chestx, data: Path, tmp_path: Path) -> None:
    words = (*TINY, "--epochs", "6", "--batch-size", "8", "--balance", "none", "--loss", "focal", "--precision", "fp32")
    record = chestx("train", data, "--study", tmp_path / "s", *words, "--json").json()
    assert max(row["val"]["auroc"] for row in record["training"]["epochs"]) > 0.9
    assert record["training"]["precision"] == "fp32"


def test_a_metric_is_given_the_truth_as_booleans(
    chestx: Chestx, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the numbers 0 and 1 `~` would make -1 and -2, which are indices, without an error."""
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS))
    METRICS.add("negatives", lambda is_positive, _: float((~is_positive).sum()))
    outcome = chestx("train", data, "--study", tmp_path / "s", *QUICK)
    assert outcome.code == 0, outcome.err
    table = pd.read_csv(tmp_path / "s" / "variants" / "baseline" / "training.csv")
    split = pd.read_csv(tmp_path / "s" / "split.csv")
    assert table["val_negatives"].tolist() == [((split["split"] == "val") & (split["is_positive"] == 0)).sum()]


def test_again_is_already_done_and_other_options_name_the_ways_out(chestx: Chestx, fresh: Path) -> None:
    before = tree(fresh)
    again = chestx("train", "--study", fresh, *QUICK)
    assert again.code == 0
    assert "already done" in again.err
    other = chestx("train", "--study", fresh, *QUICK, "--balance", "none")
    assert other.code == 1
    assert "balance: both -> none" in other.err
    assert "--name" in other.err
    assert "--force" in other.err
    assert tree(fresh) == before
    assert chestx("train", "--study", fresh, *QUICK, "--balance", "none", "--name", "second").code == 0
    assert chestx("train", "--study", fresh, *QUICK, "--balance", "none", "--force").code == 0
    assert (fresh / "variants" / "second" / "model.safetensors").exists()
    assert tree(fresh)["variants/baseline/model.safetensors"] != before["variants/baseline/model.safetensors"]
    assert not list((fresh / "variants").glob(".*"))


def test_weights_of_a_file_are_used_and_its_head_dropped(chestx: Chestx, data: Path, tmp_path: Path) -> None:
    network = BACKBONES["tiny"].build()
    weights = tmp_path / "tiny.safetensors"
    save_file(network.half().state_dict(), weights)
    words = ("--backbone", "tiny", "--image-size", "32", "--epochs", "1", "--batch-size", "16", "--lr", "1e-9")
    record = chestx("train", data, "--study", tmp_path / "s", *words, "--weights", weights, "--json").json()
    assert record["training"]["initial_weights"].startswith("tiny.safetensors (sha256 ")
    assert "fc.weight" in record["notes"][0]
    stored = load_file(tmp_path / "s" / "variants" / "baseline" / "model.safetensors")
    assert torch.allclose(stored["conv1.weight"], network.get_parameter("conv1.weight").float(), atol=1e-6)


def test_a_pth_state_dict_is_accepted(tmp_path: Path) -> None:
    network = BACKBONES["resnet18"].build()
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "w.pth")
    target = build_classifier("resnet18", 2)
    assert load_weights(target, tmp_path / "w.pth", "fc").dropped == ("fc.bias", "fc.weight")
    assert torch.equal(target.get_parameter("conv1.weight"), network.get_parameter("conv1.weight"))


def test_a_head_that_fits_is_kept(tmp_path: Path) -> None:
    source, target = build_classifier("resnet18", 2), build_classifier("resnet18", 2)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    assert load_weights(target, tmp_path / "w.safetensors", "fc") == LoadedWeights()
    assert torch.equal(target.get_parameter("fc.4.weight"), source.get_parameter("fc.4.weight"))


class Malicious:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_weights_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    target = build_classifier("resnet18", 2)
    proof = tmp_path / "executed"
    torch.save({"fc.weight": Malicious(proof)}, tmp_path / "evil.pth")
    (tmp_path / "text.safetensors").write_text("no tensors")
    save_file(BACKBONES["resnet34"].build().state_dict(), tmp_path / "deep.safetensors")
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "lacking.safetensors")
    shapes = BACKBONES["resnet18"].build().state_dict()
    shapes["conv1.weight"] = torch.zeros(1, 3, 7, 7)
    save_file(shapes, tmp_path / "misfit.safetensors")
    for name, said in {
        "evil.pth": "cannot read",
        "text.safetensors": "cannot read",
        "deep.safetensors": "extra tensors",
        "lacking.safetensors": "lacks",
        "misfit.safetensors": "conv1.weight",
    }.items():
        with pytest.raises(WeightsError, match=said):
            load_weights(target, tmp_path / name, "fc")
    assert not proof.exists()


def test_imagenet_weights_without_network_are_told_before_torch_is_loaded(data: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['chestx', 'train', {str(data)!r}, '--study', {str(tmp_path / 's')!r}]\n"
        "from chestx_cli.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as done: print(done.code, 'torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TORCH_HOME": str(tmp_path)},
    )
    assert result.stdout.strip() == "1 False"
    for said in ("resnet50-11ad3fa6.pth", "sha256 begins 11ad3fa6", "--weights FILE", "--fetch"):
        assert said in result.stderr
    assert not (tmp_path / "s").exists()


def test_cached_imagenet_weights_must_have_their_hash(
    chestx: Chestx, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "resnet50-11ad3fa6.pth").write_bytes(b"not these")
    outcome = chestx("train", data, "--study", tmp_path / "s")
    assert outcome.code == 1
    assert "sha256" in outcome.err


@pytest.mark.parametrize("name", [name for name in BACKBONES if BACKBONES[name].weights_url])
def test_every_backbone_maps_images_to_two_logits_and_names_its_weights(name: str) -> None:
    import torchvision

    torch.manual_seed(0)
    network = build_classifier(name, 2).eval()
    with torch.inference_mode():
        assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 2)
    head = network.get_submodule(head_of(network))
    kinds = [type(module).__name__ for module in head.children()]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Dropout", "Linear"]
    expected = torchvision.models.get_model_weights(name).DEFAULT.url
    assert BACKBONES[name].weights_url == expected


@pytest.mark.parametrize("name", [name for name in BACKBONES if BACKBONES[name].weights_url])
def test_every_backbone_takes_weights_without_head(name: str, tmp_path: Path) -> None:
    source = BACKBONES[name].build()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    target = build_classifier(name, 2)
    dropped = load_weights(target, tmp_path / "w.safetensors", head_of(target)).dropped
    assert dropped
    assert all(tensor.startswith(head_of(target)) for tensor in dropped)


@pytest.mark.parametrize("name", list(LOSSES))
def test_every_loss_falls_with_confidence_and_weights_classes(name: str) -> None:
    loss = LOSSES[name]
    labels = torch.tensor([0, 1])
    unsure, sure = torch.tensor([[0.1, 0.0], [0.0, 0.1]]), torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    assert loss(sure, labels, None) < loss(unsure, labels, None)
    mixed = torch.tensor([[3.0, 0.0], [3.0, 0.0]])
    assert loss(mixed, labels, torch.tensor([1.0, 9.0])) > loss(mixed, labels, torch.tensor([9.0, 1.0]))


def test_focal_loss_without_focus_is_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chestx_cli.networks.losses.FOCAL_GAMMA", 0.0)
    logits, labels, weight = torch.randn(8, 2), torch.randint(0, 2, (8,)), torch.tensor([0.3, 1.7])
    assert LOSSES["focal"](logits, labels, weight) == pytest.approx(
        float(LOSSES["ce"](logits, labels, weight)), rel=1e-5
    )


def test_no_batch_has_one_image() -> None:
    import numpy as np

    for n in range(2, 100):
        batches = batches_of(np.arange(n), 16)
        assert min(len(batch) for batch in batches) >= 2
        assert np.concatenate(batches).tolist() == list(range(n))


def test_an_image_that_changed_since_the_split_is_refused(chestx: Chestx, tmp_path: Path) -> None:
    from conftest import write_images

    data = write_images(tmp_path / "data")
    assert chestx("split", data, "--study", tmp_path / "s").code == 0
    victim = sorted(data.rglob("*.png"))[3]
    edit(victim, lambda _: sorted(data.rglob("*.png"))[4].read_bytes())
    outcome = chestx("train", "--study", tmp_path / "s", *QUICK)
    assert outcome.code == 1
    assert "image img-000003 (split.csv has its path) has changed since the split" in outcome.err
    assert victim.name not in outcome.err
    assert not (tmp_path / "s" / "variants").exists()


def test_a_damaged_pixel_cache_is_made_again(chestx: Chestx, fresh: Path) -> None:
    (cache,) = (fresh / "cache").glob("pixels-*.npy")
    whole = hashlib.sha256(cache.read_bytes()).hexdigest()
    cache.write_bytes(cache.read_bytes()[:500])
    outcome = chestx("evaluate", "--study", fresh)
    assert outcome.code == 0
    assert "damaged" in outcome.err
    assert hashlib.sha256(cache.read_bytes()).hexdigest() == whole


def test_a_diverging_training_is_told(chestx: Chestx, data: Path, tmp_path: Path) -> None:
    outcome = chestx("train", data, "--study", tmp_path / "s", *TINY, "--epochs", "1", "--lr", "1e30")
    assert outcome.code == 1
    assert "no longer finite" in outcome.err
    assert not (tmp_path / "s" / "variants" / "baseline").exists()


def test_training_on_other_data_than_the_split_is_refused(chestx: Chestx, fresh: Path, tmp_path: Path) -> None:
    outcome = chestx("train", tmp_path, "--study", fresh, *QUICK)
    assert outcome.code == 1
    assert "--study" in outcome.err
