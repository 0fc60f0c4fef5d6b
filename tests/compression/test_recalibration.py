"""`chestx prune --recalibrate/--no-recalibrate`: treatment of BatchNorm statistics, and its documentation."""

from __future__ import annotations

import json
import shlex
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

import chestx_cli
from chestx_cli.compression.pruning.allocation import prune_zeros_guided
from chestx_cli.compression.pruning.layer_sensitivity import rank_layers
from chestx_cli.compression.pruning.unstructured import layer_sparsity, overall_sparsity, prune_globally
from chestx_cli.core.progress import SilentReporter
from chestx_cli.core.record import changed_options
from chestx_cli.data.images.pixel_cache import open_pixels
from chestx_cli.networks.backbones import BACKBONES, Backbone, build_classifier
from chestx_cli.networks.layers import prunable_layers
from chestx_cli.networks.weights.serialization import load_network
from chestx_cli.records.preprocessing import Preprocessing
from chestx_cli.records.sensitivity import LayerMeasurement, SensitivityRecord
from chestx_cli.records.variant import NO_BATCHNORM, NOT_REESTIMATED, REESTIMATED, STATISTICS_NOTES
from chestx_cli.store.directory import Study
from conftest import IMAGE_SIZE_PX, TINY, Chestx, edit
from support.made_up_study import made_stamp

PLAIN = "--no-recalibrate"
WEIGHTS = {"conv1.weight", "conv2.weight", "fc.0.weight", "fc.4.weight"}
NORMS = ("bn1", "bn2", "fc.1")
STATISTICS = {f"{norm}.{name}" for norm in NORMS for name in ("running_mean", "running_var", "num_batches_tracked")}
WITHOUT_FINE_TUNING = {
    "oneshot-50": ("--method", "oneshot"),
    "iterative-2x20": ("--method", "iterative", "--steps", 2, "--finetune-epochs", 0),
    "guided-sparsity-30": ("--method", "guided", "--budget", "sparsity", "--amount", 0.3, "--finetune-epochs", 0),
}


def variant(study: Path, name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((study / "variants" / name / "variant.json").read_text())
    return record


def weights(study: Path, name: str) -> dict[str, Any]:
    return load_file(study / "variants" / name / "model.safetensors")


def differing(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name, value in one.items() if not np.array_equal(value, other[name])}


def made_before_the_option(study: Path, name: str) -> None:
    """Make a variant's document one of a chestx that had no such option."""

    def change(content: bytes) -> bytes:
        record = json.loads(content)
        record["options"].pop("recalibrate", None)
        for part in filter(None, (record["pruning"], record["structure"])):
            del part["batchnorm_statistics"]
        return json.dumps(record).encode()

    edit(study / "variants" / name / "variant.json", change)


def rows_of(page: str, heading: str) -> dict[str, str]:
    """Return the cells below one heading of the Markdown table of pruned variants, by variant."""
    _, _, after = page.partition("The baseline against its pruned variants")
    lines = [line for line in after.split("\n\n")[1].splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    column = cells[0].index(heading)
    return {row[0]: row[column] for row in cells[2:]}


@pytest.mark.parametrize("name", list(WITHOUT_FINE_TUNING))
def test_statistics_differ_and_nothing_else_does(chestx: Chestx, study: Path, name: str) -> None:
    words = ("prune", "--study", study, *WITHOUT_FINE_TUNING[name])
    own = chestx(*words, "--force", "--json").json()
    plain = chestx(*words, PLAIN, "--json").json()
    assert (own["name"], plain["name"]) == (name, f"{name}-plain")
    assert own["pruning"]["achieved_sparsity"] == plain["pruning"]["achieved_sparsity"] > 0.29
    assert differing(weights(study, own["name"]), weights(study, plain["name"])) == STATISTICS
    # The plain method changes nothing of its parent but what it zeroes.
    parent, left = weights(study, "baseline"), weights(study, plain["name"])
    assert differing(left, parent) <= WEIGHTS
    assert all(np.array_equal(value, np.where(value == 0, 0, parent[name])) for name, value in left.items())


def test_statistics_are_those_of_the_network_with_its_zeros(finished: Path) -> None:
    study = Study(finished)
    split, preprocessing = study.read_split(), Preprocessing(image_size_px=IMAGE_SIZE_PX)
    pixels = open_pixels(study, split, preprocessing, SilentReporter())
    inputs = torch.from_numpy(preprocessing.normalised(pixels[split.indices("train")]))
    networks = {name: load_network(study, study.read_variant(name)) for name in ("baseline", "oneshot-50")}
    with torch.no_grad():
        made = {name: network.get_submodule("conv1")(inputs) for name, network in networks.items()}
    stored = networks["oneshot-50"].get_buffer("bn1.running_mean")
    means = {name: found.mean(dim=(0, 2, 3)) for name, found in made.items()}
    assert torch.allclose(stored, means["oneshot-50"], atol=1e-4)
    assert not torch.allclose(stored, means["baseline"], atol=1e-2)


def test_the_same_again_is_the_same_file(chestx: Chestx, study: Path) -> None:
    before = variant(study, "oneshot-50")["model_sha256"]
    again = chestx("prune", "--study", study, "--seed", 7, "--force", "--json").json()
    assert again["model_sha256"] == before


@pytest.mark.parametrize("method", ["iterative", "guided"])
def test_each_step_takes_statistics_with_its_zeros_before_it_is_fine_tuned(finished: Path, method: str) -> None:
    study = Study(finished)
    network = load_network(study, study.read_variant("baseline"))
    done: list[tuple[str, float]] = []

    def zeros() -> float:
        # As layers compute with them: what hooks have masked, or what is stored.
        found = [torch.as_tensor(layer.weight).detach() for layer in prunable_layers(network).values()]
        return round(sum(int((w == 0).sum()) for w in found) / sum(w.numel() for w in found), 2)

    def recalibrate(pruned: nn.Module) -> None:
        with torch.no_grad():
            pruned(torch.zeros(2, 3, IMAGE_SIZE_PX, IMAGE_SIZE_PX))
        done.append(("statistics", zeros()))

    def finetune(_pruned: nn.Module, step: int) -> list[Any]:
        done.append((f"step {step}", zeros()))
        return []

    if method == "iterative":
        prune_globally(network, (0.5, 0.5), recalibrate=recalibrate, finetune=finetune)
    else:
        found = tuple(
            LayerMeasurement(
                layer=row.layer, kind="", weights=row.weights, amount=0.9, loss=1.0 + row.weights, accuracy=1, auroc=1
            )
            for row in layer_sparsity(network)
        )
        record = SensitivityRecord(
            stamp=made_stamp(0),
            variant="baseline",
            split="val",
            images=1,
            loss=1.0,
            accuracy=1.0,
            auroc=1.0,
            amounts=(0.9,),
            model_sha256="",
            rows=rank_layers(found, 1.0, 1.0),
            measurements=found,
        )
        prune_zeros_guided(network, record, amount=0.75, steps=2, recalibrate=recalibrate, finetune=finetune)
    assert done == [("statistics", 0.5), ("step 1", 0.5), ("statistics", 0.75), ("step 2", 0.75)]
    assert overall_sparsity(layer_sparsity(network)) == pytest.approx(0.75, abs=0.01)


def test_fine_tuning_begins_with_the_statistics_of_the_zeros(chestx: Chestx, study: Path) -> None:
    words = ("prune", "--study", study, "--method", "iterative", "--steps", 2, "--finetune-epochs", 1)
    plain = chestx(*words, "--batch-size", 16, PLAIN, "--json").json()
    assert plain["name"] == "iterative-2x20-plain"
    assert plain["pruning"]["batchnorm_statistics"] == NOT_REESTIMATED
    # Steps of training normalise by their own batch: the statistics are all that differs.
    assert differing(weights(study, "iterative-2x20"), weights(study, plain["name"])) == STATISTICS


def test_record_table_and_report_say_which(chestx: Chestx, study: Path) -> None:
    for name, words, said in (("oneshot-50", (), REESTIMATED), ("oneshot-50-plain", (PLAIN,), NOT_REESTIMATED)):
        outcome = chestx("prune", "--study", study, *words, "--full")
        record = variant(study, name)
        assert record["pruning"]["batchnorm_statistics"] == said
        assert STATISTICS_NOTES[said] in record["notes"]
        (line,) = [line for line in outcome.out.splitlines() if line.startswith("BatchNorm statistics  ")]
        assert line.split("  ")[-1].strip() == said
        assert STATISTICS_NOTES[said] in " ".join(outcome.out.split())
    assert chestx("report", "--study", study).code == 0
    page = (study / "report" / "report.md").read_text()
    assert rows_of(page, "BatchNorm statistics") == {
        "baseline": "–",
        "oneshot-50": REESTIMATED,
        "iterative-2x20": REESTIMATED,
        "oneshot-50-plain": NOT_REESTIMATED,
    }
    assert f"oneshot-50-plain: {STATISTICS_NOTES[NOT_REESTIMATED]}" in page
    assert (study / "report" / "index.html").read_text().count(NOT_REESTIMATED) >= 2


def test_the_two_are_different_variants(chestx: Chestx, study: Path) -> None:
    assert chestx("prune", "--study", study, PLAIN).code == 0
    for words, said in (
        ((PLAIN, "--name", "oneshot-50"), "recalibrate: True -> False"),
        (("--name", "oneshot-50-plain"), "recalibrate: False -> True"),
        (("--device", "cpu"), "(device: auto -> cpu)"),
    ):
        refused = chestx("prune", "--study", study, *words)
        assert refused.code == 1
        assert said in refused.err
    # Nothing is drawn for statistics, and without them nothing is computed that a device could round.
    for same in ((), ("--seed", 7, "--precision", "fp32"), (PLAIN,), (PLAIN, "--device", "cpu", "--seed", 7)):
        again = chestx("prune", "--study", study, *same)
        assert again.code == 0
        assert "already done" in again.err


def test_the_command_in_the_record_makes_the_same_variant(chestx: Chestx, study: Path) -> None:
    chestx_cli.prune(study=study, recalibrate=False)
    command = variant(study, "oneshot-50-plain")["stamp"]["command"]
    assert shlex.split(command) == ["chestx", "prune", "--study", "DIR", PLAIN]
    again = chestx(*shlex.split(command.replace("DIR", str(study)))[1:])
    assert "already done" in again.err
    assert chestx_cli.prune.command_line(recalibrate=True) == "chestx prune"
    assert "--force/" not in chestx("prune", "--help").out


def test_variants_made_before_the_option_are_plain(chestx: Chestx, study: Path) -> None:
    assert chestx("prune", "--study", study, PLAIN, "--name", "oneshot-50", "--force").code == 0
    made_before_the_option(study, "oneshot-50")
    assert chestx("evaluate", "oneshot-50", "--study", study).code == 0
    assert chestx("report", "--study", study).code == 0
    statistics = rows_of((study / "report" / "report.md").read_text(), "BatchNorm statistics")
    assert statistics["oneshot-50"] == NOT_REESTIMATED
    again = chestx("prune", "--study", study, PLAIN, "--name", "oneshot-50")
    assert again.code == 0
    assert "already done" in again.err
    refused = chestx("prune", "--study", study)
    assert refused.code == 1
    assert "recalibrate: False -> True" in refused.err
    assert "--name" in refused.err


def test_channels_removed_before_it_was_recorded_are_what_they_are(chestx: Chestx, study: Path) -> None:
    words = ("prune", "--study", study, "--method", "structured", "--round-to", 1, "--finetune-epochs", 0)
    assert chestx(*words, "--json").json()["structure"]["batchnorm_statistics"] == REESTIMATED
    made_before_the_option(study, "structured-50")
    assert "already done" in chestx(*words).err
    assert chestx("report", "--study", study).code == 0
    page = (study / "report" / "report.md").read_text()
    assert rows_of(page, "BatchNorm statistics")["structured-50"] == "–"


def test_an_unfinished_run_of_before_is_gone_on_with_by_its_own_options() -> None:
    assert changed_options({"steps": 2}, {"steps": 2, "recalibrate": False}) == []
    assert changed_options({"steps": 2}, {"steps": 2, "recalibrate": True}) == ["recalibrate: False -> True"]
    assert changed_options({"steps": 2}, {"steps": 2}) == []


@pytest.mark.parametrize("words", [("structured",), ("guided",), ("guided", "--budget", "macs")])
def test_channels_do_not_go_without(chestx: Chestx, study: Path, words: tuple[str, ...]) -> None:
    outcome = chestx("prune", "--study", study, "--method", *words, PLAIN)
    assert outcome.code == 2
    assert PLAIN in outcome.err
    assert "--method oneshot" in outcome.err
    assert ("--budget sparsity" in outcome.err) == (words[0] == "guided")


def build_bare() -> nn.Module:
    """Return a network without batch normalisation, to be given the study's head."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 8, 3, stride=4), pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(8, 10)
        )
    )


@pytest.mark.parametrize("head_has_batchnorm", [True, False])
def test_of_a_network_without_batchnorm_nothing_is_claimed(
    chestx: Chestx, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head_has_batchnorm: bool
) -> None:
    def without(backbone: str, n_classes: int) -> nn.Module:
        network = build_classifier(backbone, n_classes)
        network.get_submodule("fc").register_module("1", nn.Identity())
        return network

    monkeypatch.setitem(BACKBONES._entries, "bare", Backbone(build=build_bare))
    if not head_has_batchnorm:
        monkeypatch.setattr("chestx_cli.networks.weights.serialization.build_classifier", without)
        monkeypatch.setattr("chestx_cli.commands.train.build_classifier", without)
    study = tmp_path / "study"
    at = ("--study", study)
    assert chestx("train", data, *at, *TINY, "--backbone", "bare", "--epochs", 1).code == 0
    said = REESTIMATED if head_has_batchnorm else NO_BATCHNORM
    record = chestx("prune", *at, "--json").json()
    assert record["pruning"]["batchnorm_statistics"] == said
    assert STATISTICS_NOTES[said] in record["notes"]
    assert ("recalibrate" in record["options"]) == head_has_batchnorm
    plain = chestx("prune", *at, PLAIN)
    assert plain.code == 0
    # Without any there is only one way, and it is the same variant.
    assert (study / "variants" / "oneshot-50-plain").exists() == head_has_batchnorm
    assert ("already done" in plain.err) != head_has_batchnorm
    assert chestx("prune", *at, "--device", "cpu").code == (1 if head_has_batchnorm else 0)
    cut = chestx("prune", *at, "--method", "structured", "--round-to", 1, "--finetune-epochs", 0, "--json").json()
    assert cut["structure"]["batchnorm_statistics"] == said
