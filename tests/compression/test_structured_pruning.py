"""Structured and guided pruning: removed channels, criteria, and reloading the pruned network from its file."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from chestx_cli.compression.pruning.allocation import Curve, cheapest_first, cost_curves
from chestx_cli.compression.pruning.channel_removal import (
    Limits,
    MacsByWidth,
    allowed_widths,
    channels_to_remove,
    without_channels,
)
from chestx_cli.compression.pruning.criteria import CRITERIA, Criterion, usual_criterion
from chestx_cli.compression.pruning.dependency_groups import ChannelGroup, channel_weights, score_channels, trace_groups
from chestx_cli.compression.pruning.structured import Cutting, prune_channels
from chestx_cli.core.errors import ChestxError, IntegrityError
from chestx_cli.core.progress import SilentReporter
from chestx_cli.data.images.pixel_cache import open_pixels
from chestx_cli.networks.backbones import BACKBONES, Backbone, build_classifier, output_layer
from chestx_cli.networks.layers import count_macs, layer_macs, prunable_layers
from chestx_cli.networks.recalibration import reestimate_batchnorm
from chestx_cli.networks.training_data import FitData
from chestx_cli.networks.weights.serialization import load_model_file, load_network, narrow, serialised
from chestx_cli.records.preprocessing import Preprocessing
from chestx_cli.records.sensitivity import LayerMeasurement
from chestx_cli.store.directory import Study
from conftest import IMAGE_SIZE_PX, Chestx, edit, run_chestx

# It shuffles channels.
UNFOLLOWED = "shufflenet_v2_x1_0"
FAMILIES = (
    "resnet18",
    "densenet",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "efficientnet_b0",
    "convnext_tiny",
)
QUICK = ("--round-to", 1, "--finetune-epochs", 1, "--batch-size", 16)


@pytest.fixture(scope="module")
def images(finished: Path) -> FitData:
    """Return the images of the finished study."""
    study = Study(finished)
    split, preprocessing = study.read_split(), Preprocessing(image_size_px=IMAGE_SIZE_PX)
    pixels = np.array(open_pixels(study, split, preprocessing, SilentReporter()))
    return FitData(pixels=pixels, split=split, preprocessing=preprocessing)


@pytest.fixture(scope="module")
def structured(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a study with a structured variant and the structured sensitivity; tests must not change it."""
    study = tmp_path_factory.mktemp("structured") / "study"
    shutil.copytree(finished, study)
    for words in (
        ("sensitivity", "--structured", "--amounts", "0.3,0.6,0.9"),
        ("prune", "--method", "structured", *QUICK),
    ):
        outcome = run_chestx(*words, "--study", study)
        assert outcome.code == 0, outcome.err
    return study


@pytest.fixture
def own(structured: Path, tmp_path: Path) -> Path:
    """Return a copy of the structured study that a test may change."""
    study = tmp_path / "study"
    shutil.copytree(structured, study)
    return study


def baseline(finished: Path) -> nn.Module:
    study = Study(finished)
    return load_network(study, study.read_variant("baseline"))


def cutting(criterion: str = "l2", *, round_to: int = 1, floor: float = 0.1) -> Cutting:
    return Cutting(
        criterion=criterion,
        limits=Limits(round_to=round_to, floor=floor),
        kept_layer="fc.4",
        device="cpu",
        precision="fp32",
        seed=3,
    )


def outputs(network: nn.Module) -> dict[str, int]:
    return {name: len(layer.get_parameter("weight")) for name, layer in prunable_layers(network).items()}


def variant(study: Path, name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((study / "variants" / name / "variant.json").read_text())
    return record


def halved(network: nn.Module, groups: tuple[ChannelGroup, ...]) -> nn.Module:
    """Return a network with half of every group's channels."""
    removed = {}
    for group in groups:
        scores = score_channels(network, group, CRITERIA["l2"])
        assert scores is not None
        width = next(
            w for w in allowed_widths(group, Limits(round_to=1, floor=0), group.channels) if w <= group.channels / 2
        )
        removed[group.name] = channels_to_remove(group, scores, width)
    return without_channels(network, groups, removed)


def same_outputs(one: nn.Module, other: nn.Module, side_px: int) -> bool:
    images = torch.rand(3, 3, side_px, side_px, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return torch.equal(one.eval()(images), other.eval()(images))


@pytest.mark.parametrize("criterion", list(CRITERIA))
def test_every_criterion_meets_the_macs_and_gives_its_network_back(
    finished: Path, images: FitData, tmp_path: Path, criterion: str
) -> None:
    network = baseline(finished)
    before = copy.deepcopy(network.state_dict())
    torch.manual_seed(0)
    pruned, rows = prune_channels(network, images, cutting(criterion), amount=0.4, steps=1, finetune=None)
    assert rows == []
    achieved = 1 - count_macs(pruned, IMAGE_SIZE_PX) / count_macs(network, IMAGE_SIZE_PX)
    assert achieved == pytest.approx(0.4, abs=0.01)
    assert outputs(pruned)["fc.4"] == 2
    for name, width in outputs(pruned).items():
        assert width >= 0.1 * outputs(network)[name]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    (tmp_path / "model.safetensors").write_bytes(serialised(pruned))
    assert same_outputs(pruned, load_model_file(tmp_path / "model.safetensors", "tiny", 2), IMAGE_SIZE_PX)


def test_criteria_choose_differently(finished: Path, images: FitData) -> None:
    chosen = set()
    for criterion in CRITERIA:
        torch.manual_seed(0)
        pruned, _ = prune_channels(baseline(finished), images, cutting(criterion), amount=0.4, steps=1, finetune=None)
        chosen.add(serialised(pruned))
    assert len(chosen) == len(CRITERIA)


def test_channels_come_in_multiples_and_floors_hold(finished: Path, images: FitData) -> None:
    pruned, _ = prune_channels(
        baseline(finished), images, cutting(round_to=4, floor=0.5), amount=0.48, steps=1, finetune=None
    )
    widths = outputs(pruned)
    assert widths["conv1"] in {4, 8}
    assert widths["conv2"] in {8, 12, 16}
    assert widths["fc.0"] % 4 == 0
    assert 256 <= widths["fc.0"] <= 512
    with pytest.raises(ChestxError, match="cannot be removed: the nearest is") as told:
        prune_channels(baseline(finished), images, cutting(floor=0.9), amount=0.8, steps=1, finetune=None)
    assert "--floor" in told.value.remedy


def test_steps_reach_the_same_share_and_tell_the_fine_tuning_which(finished: Path, images: FitData) -> None:
    told = []

    def finetune(network: nn.Module, step: int) -> list[Any]:
        told.append((step, count_macs(network, IMAGE_SIZE_PX)))
        return []

    network = baseline(finished)
    prune_channels(network, images, cutting(), amount=0.51, steps=2, finetune=finetune)
    whole = count_macs(network, IMAGE_SIZE_PX)
    assert [step for step, _ in told] == [1, 2]
    assert [macs / whole for _, macs in told] == [pytest.approx(0.7, abs=0.01), pytest.approx(0.49, abs=0.01)]


@pytest.mark.parametrize("criterion", ["taylor", "l2"])
def test_only_training_images_are_used(finished: Path, images: FitData, criterion: str) -> None:
    def pruned(data: FitData) -> bytes:
        torch.manual_seed(0)
        network, _ = prune_channels(baseline(finished), data, cutting(criterion), amount=0.4, steps=1, finetune=None)
        return serialised(network)

    def with_noise(*parts: str) -> FitData:
        pixels = np.array(images.pixels)
        for part in parts:
            rows = images.split.indices(part)
            pixels[rows] = np.random.default_rng(0).integers(0, 255, pixels[rows].shape, dtype=np.uint8)
        return dataclasses.replace(images, pixels=pixels)

    assert pruned(images) == pruned(images)
    assert pruned(with_noise("val", "test")) == pruned(images)
    assert pruned(with_noise("train")) != pruned(images)


def test_batchnorm_takes_its_statistics_from_the_training_images(finished: Path, images: FitData) -> None:
    network = baseline(finished)
    assert isinstance(network.bn1, nn.BatchNorm2d)
    network.bn1.running_mean = torch.full((8,), 9.0)
    reestimate_batchnorm(network, images, device="cpu")
    inputs = torch.from_numpy(images.preprocessing.normalised(images.pixels[images.split.indices("train")]))
    with torch.inference_mode():
        expected = network.conv1(inputs).mean(dim=(0, 2, 3))  # type: ignore[operator]
    assert network.bn1.running_mean is not None
    assert torch.allclose(network.bn1.running_mean, expected, atol=1e-4)
    assert network.bn1.momentum == 0.1
    assert not network.training


@pytest.fixture
def short_densenet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register torchvision's DenseNet with two layers per block: tracing the 121 layers takes long."""
    from torchvision.models import DenseNet

    entry = Backbone(build=lambda: DenseNet(growth_rate=32, block_config=(2, 2, 2)))
    monkeypatch.setitem(BACKBONES._entries, "densenet", entry)


@pytest.mark.usefixtures("short_densenet")
@pytest.mark.parametrize("backbone", FAMILIES)
def test_every_family_is_cut_as_its_graph_says_and_rebuilt_from_shapes(backbone: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_classifier(backbone, 2).eval()
    groups = trace_groups(network, 32, kept_layer=output_layer(network))
    assert sum(layer_macs(network, 32).values()) == count_macs(network, 32)
    narrower = halved(network, groups)
    assert count_macs(narrower, 32) < 0.4 * count_macs(network, 32)
    macs = MacsByWidth(network, groups, 32)
    widths = {group.name: outputs(narrower)[group.name] for group in groups}
    assert macs(widths) == pytest.approx(count_macs(narrower, 32))
    (tmp_path / "model.safetensors").write_bytes(serialised(narrower))
    again = load_model_file(tmp_path / "model.safetensors", backbone, 2)
    assert same_outputs(narrower, again, 32)
    assert repr(again) == repr(narrower)


def test_a_network_whose_channels_cannot_be_followed_is_refused() -> None:
    network = build_classifier(UNFOLLOWED, 2)
    with pytest.raises(ChestxError, match=r"cannot follow the channels .*--method oneshot"):
        trace_groups(network, 64, kept_layer=output_layer(network))


def test_a_formula_is_given_the_weights_of_each_channel() -> None:
    network = build_classifier("tiny", 2)
    group = trace_groups(network, 32, kept_layer=output_layer(network))[0]
    parts = {(part.layer, part.tensor): part for part in channel_weights(network, group)}
    conv1, conv2 = network.get_parameter("conv1.weight"), network.get_parameter("conv2.weight")
    assert set(parts) == {("conv1", "weight"), ("bn1", "weight"), ("bn1", "bias"), ("conv2", "weight")}
    assert torch.equal(parts["conv1", "weight"].values, conv1.flatten(1))
    assert torch.equal(parts["conv2", "weight"].values, conv2.transpose(0, 1).flatten(1))
    assert [parts["conv1", "weight"].makes, parts["conv2", "weight"].makes] == [True, False]
    assert parts["conv1", "weight"].gradients is None
    network(torch.zeros(2, 3, 32, 32)).sum().backward()
    gradients = {part.layer: part.gradients for part in channel_weights(network, group)}["conv2"]
    assert conv2.grad is not None
    assert gradients is not None
    assert torch.equal(gradients, conv2.grad.transpose(0, 1).flatten(1))


# Of networks without depthwise convolutions, which that importance leaves out.
@pytest.mark.parametrize("family", ["regnet_y_400mf", "densenet121"])
def test_a_formula_scores_every_group_as_the_importance_of_that_formula(family: str) -> None:
    """The first layer's norm, which Torch-Pruning has too, by channel and in its order."""
    import torch_pruning

    network = build_classifier(family, 2)
    first = torch_pruning.importance.GroupMagnitudeImportance(p=1, group_reduction="first", normalizer=None)
    own = Criterion(importance=lambda parts: parts[0].values.abs().sum(dim=1))
    for group in trace_groups(network, 64, kept_layer=output_layer(network)):
        scores = score_channels(network, group, own)
        assert scores is not None
        torch.testing.assert_close(scores, first(group.handle).double())


def test_a_formula_that_returns_something_else_is_named() -> None:
    network = build_classifier("tiny", 2)
    group = trace_groups(network, 32, kept_layer=output_layer(network))[0]
    wrong: dict[str, Any] = {
        r"\[3\]": lambda _: torch.ones(3),
        "numbers that are not finite": lambda _: torch.full((8,), torch.nan),
        "float": lambda _: 1.0,
        "ndarray": lambda parts: parts[0].values.sum(dim=1).numpy(),
    }
    for returned, formula in wrong.items():
        with pytest.raises(ChestxError, match=rf"formula returned {returned} for conv1 of 8 channels"):
            score_channels(network, group, Criterion(importance=formula))
    assert score_channels(network, group, Criterion(importance=lambda _: None)) is None


def test_a_formula_or_a_name_that_fails_is_named() -> None:
    network = build_classifier("tiny", 2)
    group = trace_groups(network, 32, kept_layer=output_layer(network))[0]
    with pytest.raises(ChestxError, match=r"formula failed for conv1: ZeroDivisionError: .* by zero"):
        score_channels(network, group, Criterion(importance=lambda parts: parts[0].values / (1 // 0)))
    with pytest.raises(ChestxError, match="Torch-Pruning has no importance 'L1'"):
        score_channels(network, group, Criterion(importance="L1"))


def test_every_registered_family_is_tested() -> None:
    families = {name.rstrip("0123456789") for name in BACKBONES if name not in {"tiny", UNFOLLOWED}}
    assert families == {name.rstrip("0123456789") for name in FAMILIES}


def test_a_cut_network_computes_what_torch_pruning_makes() -> None:
    import torch_pruning

    # Residual sums, depthwise convolutions and squeeze-excite.
    backbone = "mobilenet_v3_large"
    torch.manual_seed(0)
    network = build_classifier(backbone, 2).eval()
    other = copy.deepcopy(network)
    groups = trace_groups(network, 32, kept_layer=output_layer(network))
    narrower = halved(network, groups)
    graph = torch_pruning.DependencyGraph().build_dependency(other, torch.zeros(1, 3, 32, 32))
    for group in groups:
        scores = score_channels(network, group, CRITERIA["l2"])
        assert scores is not None
        width = outputs(narrower)[group.name]
        layer = other.get_submodule(group.name)
        function = graph.get_pruner_of_module(layer).prune_out_channels
        graph.get_pruning_group(layer, function, channels_to_remove(group, scores, width).tolist()).prune()
    assert same_outputs(narrower, other, 32)


def test_grouped_convolutions_lose_as_many_channels_in_each_group() -> None:
    def build() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(3, 16, 3),
            nn.Conv2d(16, 24, 3, groups=4),
            nn.BatchNorm2d(24),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(24, 2),
        )

    network = build().eval()
    groups = trace_groups(network, 16, kept_layer="5")
    assert [(group.channels, group.blocks) for group in groups] == [(16, 4), (24, 4)]
    narrower = halved(network, groups)
    assert isinstance(narrower[1], nn.Conv2d)  # type: ignore[index]
    assert (narrower[1].in_channels, narrower[1].out_channels, narrower[1].groups) == (8, 12, 4)  # type: ignore[index]
    again = build()
    narrow(again, {name: tuple(tensor.shape) for name, tensor in narrower.state_dict().items()})
    again.load_state_dict(narrower.state_dict())
    assert same_outputs(narrower, again, 16)


def test_networks_without_batchnorm_are_pruned_by_magnitude() -> None:
    usual = {backbone: usual_criterion(build_classifier(backbone, 2)) for backbone in ("tiny", "convnext_tiny")}
    assert usual == {"tiny": "bn-scale", "convnext_tiny": "l2"}


def test_a_criterion_without_say_is_told(images: FitData) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.fc = nn.Linear(8, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.fc(self.conv(images).mean(dim=(2, 3)))
            return logits

    plain = dataclasses.replace(cutting("bn-scale"), kept_layer="fc")
    with pytest.raises(ChestxError, match="finds nothing to score"):
        prune_channels(Plain(), images, plain, amount=0.3, steps=1, finetune=None)


def test_the_command_says_what_it_removed(structured: Path) -> None:
    record = variant(structured, "structured-50")
    structure = record["structure"]
    assert structure["achieved_macs_removed"] == pytest.approx(0.5, abs=0.01)
    assert record["macs"] == pytest.approx((1 - structure["achieved_macs_removed"]) * structure["parent_macs"])
    assert record["parameters"] < structure["parent_parameters"]
    assert record["model_bytes"] < variant(structured, "baseline")["model_bytes"]
    assert {row["layer"] for row in structure["layers"]} == {"conv1", "conv2", "fc.0", "fc.4"}
    assert all(row["after"] < row["before"] for row in structure["layers"] if row["layer"] != "fc.4")
    assert record["pruning"] is None
    assert "threshold" in record["notes"][0]


def test_the_sensitivity_is_stored_and_drawn(structured: Path) -> None:
    folder = structured / "variants" / "baseline"
    record = json.loads((folder / "sensitivity.structured.json").read_text())
    assert {row["layer"] for row in record["rows"]} == {"conv1", "conv2", "fc.0"}
    assert len(record["measurements"]) == 9
    increases = [row["mean_loss_increase"] for row in record["rows"]]
    assert increases == sorted(increases, reverse=True)
    conv1 = [found for found in record["measurements"] if found["layer"] == "conv1"]
    assert [found["channels_removed"] for found in conv1] == [2, 5, 7]
    # What conv1 makes, conv2 takes: both get cheaper.
    assert conv1[0]["macs_removed"] == pytest.approx(2 / 8 * (3 * 9 * 8 * 256 + 8 * 9 * 16 * 64) / 138_240)
    assert (folder / "sensitivity.structured.csv").exists()
    assert (structured / "report" / "figures" / "structured-sensitivity.svg").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate",),
        ("report",),
        ("quantize", "--method", "dynamic", "--from", "structured-50"),
        ("sensitivity", "--from", "structured-50", "--layers", "conv1"),
        ("benchmark", "structured-50", "--rounds", 1, "--duration", 0.02),
        ("prune", "--from", "structured-50", "--method", "oneshot"),
        ("prune", "--from", "structured-50", "--method", "structured", "--amount", 0.2, *QUICK),
        ("prune", "--method", "guided", "--amount", 0.7, "--steps", 2, *QUICK),
    ],
    ids=lambda words: " ".join(map(str, words[:5])),
)
def test_a_structured_variant_is_a_variant_like_any_other(own: Path, words: tuple[object, ...]) -> None:
    outcome = run_chestx(*words, "--study", own)
    assert outcome.code == 0, outcome.err
    if words[0] == "report":
        page = (own / "report" / "report.md").read_text()
        assert "MACs removed" in page
        assert "structured-sensitivity" in page
    if words[0] == "quantize":
        path = own / "variants" / "structured-50-dynamic-int8" / "model.onnx"
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        assert session.run(None, {"images": np.zeros((1, 3, 32, 32), dtype=np.float32)})[0].shape == (1, 2)


def test_a_sparse_parent_keeps_its_zeros(own: Path, chestx: Chestx) -> None:
    record = chestx("prune", "--study", own, "--from", "oneshot-50", "--method", "structured", *QUICK, "--json").json()
    assert record["structure"]["achieved_macs_removed"] == pytest.approx(0.5, abs=0.01)
    zeros = record["parameters"] - record["nonzero_parameters"]
    assert zeros > 0.2 * record["parameters"]


def test_the_same_again_is_the_same_file(own: Path, chestx: Chestx) -> None:
    before = variant(own, "structured-50")["model_sha256"]
    again = chestx("prune", "--method", "structured", *QUICK, "--study", own, "--force", "--json").json()
    assert again["model_sha256"] == before
    assert "already done" in chestx("prune", "--method", "structured", *QUICK, "--study", own).err


def test_a_teacher_changes_what_is_learnt(own: Path, chestx: Chestx) -> None:
    usual = variant(own, "structured-50")
    assert usual["options"]["distill"]
    assert usual["options"]["temperature"] == 4
    hashes = {usual["model_sha256"]}
    options = {
        "alone": ("--no-distill",),
        "hard": ("--temperature", 1, "--teacher-weight", 1),
        "features": ("--feature-weight", 3000),
    }
    for name, words in options.items():
        words = ("--method", "structured", *QUICK, *words, "--name", name)
        hashes.add(chestx("prune", *words, "--study", own, "--json").json()["model_sha256"])
    assert len(hashes) == 4


def test_a_teacher_alone_pulls_towards_its_own_logits(finished: Path) -> None:
    from chestx_cli.networks.distillation import distilling
    from chestx_cli.networks.recipe import Recipe

    recipe = Recipe(
        epochs=1,
        batch_size=8,
        learning_rate=0.1,
        balance="none",
        loss="ce",
        device="cpu",
        precision="fp32",
        compiled=False,
        seed=0,
    )
    teacher = baseline(finished)
    inputs = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        taught = teacher(inputs)
    logits = torch.zeros(4, 2, requires_grad=True)
    label_loss = torch.tensor(7.0)
    with distilling(teacher, recipe, temperature=2.0, weight=1.0)(baseline(finished), IMAGE_SIZE_PX) as hook:
        assert float(hook(label_loss, inputs, taught)) == pytest.approx(0, abs=1e-6)
        loss = hook(label_loss, inputs, logits)
    loss.backward()
    assert logits.grad is not None
    expected = 2.0 * (torch.full((4, 2), 0.5) - (taught / 2).softmax(dim=1)) / 4
    assert torch.allclose(logits.grad, expected, atol=1e-6)


def test_guided_spends_where_it_was_measured_to_cost_least(own: Path, chestx: Chestx) -> None:
    def costly(layer: str) -> None:
        def change(content: bytes) -> bytes:
            record = json.loads(content)
            for found in record["measurements"]:
                found["loss"] = record["loss"] + (5 if found["layer"] == layer else 0.1) * found["amount"]
            return json.dumps(record).encode()

        edit(own / "variants" / "baseline" / "sensitivity.structured.json", change)

    after = {}
    for layer in ("conv1", "conv2"):
        costly(layer)
        words = (
            "--method",
            "guided",
            "--amount",
            0.25,
            "--round-to",
            1,
            "--finetune-epochs",
            0,
            "--name",
            f"spare-{layer}",
        )
        record = chestx("prune", *words, "--study", own, "--json").json()
        assert record["structure"]["achieved_macs_removed"] == pytest.approx(0.25, abs=0.01)
        after[layer] = {row["layer"]: row["after"] for row in record["structure"]["layers"]}
    assert after["conv1"]["conv1"] == 8
    assert after["conv1"]["conv2"] < 16
    assert after["conv2"]["conv1"] < 8


def test_guided_zeros_go_where_they_cost_least(own: Path, chestx: Chestx) -> None:
    def change(content: bytes) -> bytes:
        record = json.loads(content)
        for found in record["measurements"]:
            found["loss"] = record["loss"] + (0.0 if found["layer"] == "fc.0" else 1.0) * found["amount"]
        return json.dumps(record).encode()

    edit(own / "variants" / "baseline" / "sensitivity.json", change)
    words = ("--method", "guided", "--budget", "sparsity", "--finetune-epochs", 0)
    record = chestx("prune", *words, "--study", own, "--json").json()
    assert record["pruning"]["achieved_sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert {row["layer"]: row["zeros"] > 0 for row in record["pruning"]["layers"]} == {
        "conv1": False,
        "conv2": False,
        "fc.0": True,
        "fc.4": False,
    }
    outcome = chestx("prune", *words, "--study", own, "--amount", 0.95)
    assert outcome.code == 1
    assert "--amounts" in outcome.err


def test_guided_needs_a_sensitivity_of_this_very_model(own: Path, chestx: Chestx) -> None:
    missing = chestx("prune", "--method", "guided", "--study", own, "--from", "oneshot-50")
    assert missing.code == 1
    assert "chestx sensitivity --structured --from oneshot-50" in missing.err
    other = chestx("prune", "--method", "guided", "--study", own, "--criterion", "l1")
    assert other.code == 1
    assert "--criterion l1" in other.err

    def age(content: bytes) -> bytes:
        return json.dumps({**json.loads(content), "model_sha256": "0" * 64}).encode()

    edit(own / "variants" / "baseline" / "sensitivity.structured.json", age)
    stale = chestx("prune", "--method", "guided", "--study", own)
    assert stale.code == 1
    assert "earlier baseline" in stale.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--method", "oneshot", "--criterion", "l1"), "--criterion"),
        (("--method", "structured", "--budget", "macs"), "--budget"),
        (("--method", "structured", "--no-distill", "--temperature", "2"), "--distill"),
        (("--method", "oneshot", "--distill"), "--finetune-epochs"),
        (("--method", "guided", "--budget", "sparsity", "--round-to", "4"), "--round-to"),
        (("--method", "structured", "--floor", "1.5"), "--floor"),
    ],
)
def test_options_of_other_methods_are_usage_errors(
    study: Path, chestx: Chestx, words: tuple[str, ...], said: str
) -> None:
    outcome = chestx("prune", "--study", study, *words)
    assert outcome.code == 2
    assert said in outcome.err


def test_a_structured_sensitivity_takes_no_layers(study: Path, chestx: Chestx) -> None:
    assert chestx("sensitivity", "--structured", "--layers", "conv1", "--study", study).code == 2
    assert chestx("sensitivity", "--criterion", "l1", "--study", study).code == 2


def test_a_file_of_other_classes_or_layers_does_not_fit(finished: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(finished / "variants" / "baseline" / "model.safetensors")
    narrowed = {
        "one class": {"fc.4.weight": state["fc.4.weight"][:1].clone(), "fc.4.bias": state["fc.4.bias"][:1].clone()},
        "a bias alone": {"fc.4.bias": state["fc.4.bias"][:1].clone()},
        "too wide": {"conv1.weight": torch.zeros(9, 3, 3, 3)},
    }
    for name, changes in narrowed.items():
        path = tmp_path / f"{name}.safetensors"
        save_file({**state, **changes}, path)
        with pytest.raises(IntegrityError, match="does not fit tiny"):
            load_model_file(path, "tiny", 2)


def test_cost_curves_are_convex_and_never_reward_pruning() -> None:
    losses = {0.2: 0.9, 0.4: 1.5, 0.6: 1.4, 0.8: 3.0}
    found = [
        LayerMeasurement(layer="a", kind="Conv2d", weights=1, amount=amount, loss=loss, accuracy=1, auroc=1)
        for amount, loss in losses.items()
    ]
    curve = cost_curves(found, 1.0)["a"]
    assert curve(0.0) == 0
    assert curve(0.2) == 0
    assert curve(0.4) == pytest.approx(0.2)
    assert curve(0.7) == pytest.approx((0.4 + 2.0) / 2)


def test_greedy_spending_takes_the_best_ratio_first() -> None:
    curves = {
        "cheap": Curve(amounts=(0.0, 0.5, 1.0), costs=(0.0, 0.1, 1.0)),
        "dear": Curve(amounts=(0.0, 1.0), costs=(0.0, 0.5)),
    }
    choices = {"cheap": (0.0, 0.5, 1.0), "dear": (0.0, 0.5, 1.0)}
    path = cheapest_first(choices, curves, lambda _at, _name: 1.0)
    assert path[0] == {"cheap": 0, "dear": 0}
    assert path[1] == {"cheap": 1, "dear": 0}
    assert path[3] == {"cheap": 1, "dear": 2}
    assert path[-1] == {"cheap": 2, "dear": 2}
