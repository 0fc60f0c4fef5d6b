"""`chestx sensitivity`, `prune` and `quantize`: effects, messages, and unchanged parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
from safetensors.numpy import load_file

from chestx_cli.compression.pruning.method_bases import ZerosMethod
from chestx_cli.compression.pruning.methods import PRUNING_METHODS
from chestx_cli.compression.pruning.onednn_int8 import int8_is_available
from chestx_cli.compression.quantization.methods import QUANTIZATION_METHODS
from chestx_cli.core.options import declared_fields
from chestx_cli.networks.devices import resolve_precision
from conftest import Chestx, tree

WEIGHTS = {"conv1.weight", "conv2.weight", "fc.0.weight", "fc.4.weight"}


def variant(study: Path, name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((study / "variants" / name / "variant.json").read_text())
    return record


def weights(study: Path, name: str) -> dict[str, Any]:
    return load_file(study / "variants" / name / "model.safetensors")


def test_sensitivity_measures_every_layer_and_touches_nothing(chestx: Chestx, study: Path) -> None:
    before = tree(study / "variants" / "baseline")["model.safetensors"]
    record = chestx("sensitivity", "--study", study, "--amounts", "0.5,0.9", "--json").json()
    assert {row["layer"] for row in record["rows"]} == {name.removesuffix(".weight") for name in WEIGHTS}
    assert len(record["measurements"]) == len(WEIGHTS) * 2
    increases = [row["mean_loss_increase"] for row in record["rows"]]
    assert increases == sorted(increases, reverse=True)
    folder = study / "variants" / "baseline"
    assert (folder / "model.safetensors").read_bytes() == before
    table = pd.read_csv(folder / "sensitivity.csv")
    assert len(table) == len(WEIGHTS) * 2
    assert table["loss"].tolist() == pytest.approx([row["loss"] for row in record["measurements"]])
    assert (study / "report" / "figures" / "sensitivity.svg").exists()


@pytest.mark.parametrize(
    ("precision", "says"),
    [
        pytest.param(
            "bf16",
            "Computed in bf16.",
            marks=pytest.mark.skipif(resolve_precision("auto", "cpu") != "bf16", reason="the processor has no bf16"),
        ),
        pytest.param(
            "int8",
            "Convolutions were computed in 8 bits.",
            marks=pytest.mark.skipif(not int8_is_available(), reason="the processor has no VNNI"),
        ),
    ],
)
def test_sensitivity_in_another_precision_is_checked_against_fp32(
    chestx: Chestx, study: Path, precision: str, says: str
) -> None:
    exact, rough = (
        chestx("sensitivity", "--study", study, "--amounts", "0.3,0.5,0.7,0.9", "--precision", one, "--json").json()
        for one in ("fp32", precision)
    )
    assert (exact["precision"], exact["check"], rough["precision"]) == ("fp32", None, precision)
    check = rough["check"]
    assert check["measurements"] == 12 < len(exact["measurements"])
    assert check["exact_loss"] == pytest.approx(exact["loss"])
    # The check is what the exact record says of these measurements.
    both = [
        {(one["layer"], one["amount"]): one["loss"] - record["loss"] for one in record["measurements"]}
        for record in (exact, rough)
    ]
    largest = max(abs(both[0][key] - both[1][key]) for key in both[0])
    assert 0 < check["max_loss_difference"] <= largest + 1e-6
    assert largest < 0.05
    assert any(says in warning for warning in rough["answer"]["warnings"])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--precision", "bf16"), "this processor has no bf16"),
        (("--precision", "int8"), "8-bit convolutions need a processor that is known to have VNNI"),
        (("--precision", "int8", "--device", "cuda"), "8-bit convolutions are computed on the CPU only"),
        (("--precision", "bf16", "--structured"), "--precision has no effect with --structured"),
        (("--precision", "int8", "--quantization"), "--precision has no effect with --quantization"),
    ],
)
def test_a_precision_is_refused_where_it_has_no_effect_or_is_slower(
    chestx: Chestx, study: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], says: str
) -> None:
    monkeypatch.setattr("chestx_cli.commands.sensitivity.resolve_precision", lambda *_: "fp32")
    monkeypatch.setattr("chestx_cli.commands.sensitivity.resolve_device", lambda device: device.replace("auto", "cpu"))
    monkeypatch.setattr("chestx_cli.compression.pruning.onednn_int8.instructions", lambda: frozenset({"AVX2"}))
    outcome = chestx("sensitivity", "--study", study, *more)
    assert outcome.code == 2
    assert says in outcome.err


def test_sensitivity_equals_pruning_that_layer_by_hand(chestx: Chestx, study: Path) -> None:
    import torch

    from chestx_cli.core.progress import SilentReporter
    from chestx_cli.data.images.pixel_cache import open_pixels
    from chestx_cli.networks.backbones import build_classifier
    from chestx_cli.records.preprocessing import Preprocessing
    from chestx_cli.store.directory import Study

    stored = (study / "variants" / "baseline" / "sensitivity.json").read_bytes()
    record = chestx("sensitivity", "--study", study, "--amounts", "0.5,0.5", "--layers", "conv2", "--json").json()
    (found,) = record["measurements"]
    # Nothing is stored that pruning could use.
    assert record["answer"]["next_command"] == "chestx sensitivity --amounts 0.5,0.5"
    assert (study / "variants" / "baseline" / "sensitivity.json").read_bytes() == stored
    network = build_classifier("tiny", 2)
    state = {name: torch.from_numpy(value) for name, value in weights(study, "baseline").items()}
    flat = state["conv2.weight"].abs().flatten()
    cut = flat.sort().values[round(0.5 * len(flat)) - 1]
    state["conv2.weight"] = torch.where(state["conv2.weight"].abs() <= cut, 0.0, state["conv2.weight"])
    network.load_state_dict(state)
    split = Study(study).read_split()
    preprocessing = Preprocessing(image_size_px=32)
    rows = split.indices("val")
    pixels = open_pixels(Study(study), split, preprocessing, SilentReporter())
    with torch.inference_mode():
        logits = network.eval()(torch.from_numpy(preprocessing.normalised(pixels[rows])))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(split.labels[rows]))
    assert found["loss"] == pytest.approx(float(loss), abs=1e-4)


def test_one_shot_has_one_step(chestx: Chestx, study: Path) -> None:
    outcome = chestx("prune", "--study", study, "--steps", "3")
    assert outcome.code == 2
    assert "--method iterative" in outcome.err


def test_unknown_layers_are_usage_errors(chestx: Chestx, study: Path) -> None:
    outcome = chestx("sensitivity", "--study", study, "--layers", "conv9")
    assert outcome.code == 2
    assert "conv1" in outcome.err or "conv2" in outcome.err


@pytest.mark.parametrize("amounts", ["0", "1.5", "a", "-0.2", "nan"])
def test_amounts_out_of_range_are_usage_errors(chestx: Chestx, study: Path, amounts: str) -> None:
    assert chestx("sensitivity", "--study", study, "--amounts", amounts).code == 2


def test_oneshot_zeroes_the_smallest_half_of_all_weights(finished: Path) -> None:
    before, after = weights(finished, "baseline"), weights(finished, "oneshot-50")
    magnitudes = np.concatenate([np.abs(before[name]).ravel() for name in WEIGHTS])
    cut = np.sort(magnitudes)[round(0.5 * len(magnitudes)) - 1]
    for name in WEIGHTS:
        assert np.array_equal(after[name], np.where(np.abs(before[name]) <= cut, 0, before[name]))
    record = variant(finished, "oneshot-50")
    assert record["pruning"]["achieved_sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert record["model_bytes"] == variant(finished, "baseline")["model_bytes"]
    assert record["nonzero_parameters"] < record["parameters"]
    assert "change neither the dense file nor the latency" in record["notes"][0]


def test_iterative_takes_a_share_of_what_is_left_and_holds_its_masks(finished: Path) -> None:
    record = variant(finished, "iterative-2x20")
    assert record["pruning"]["target_sparsity"] == pytest.approx(1 - 0.8**2)
    assert record["pruning"]["achieved_sparsity"] == pytest.approx(1 - 0.8**2, abs=2e-3)
    assert record["pruning"]["finetune_epochs"] == 2
    after = weights(finished, "iterative-2x20")
    zeros = sum(int((after[name] == 0).sum()) for name in WEIGHTS)
    assert zeros == sum(row["zeros"] for row in record["pruning"]["layers"])
    assert not np.array_equal(after["bn1.weight"], weights(finished, "baseline")["bn1.weight"])
    epochs = pd.read_csv(finished / "variants" / "iterative-2x20" / "training.csv")
    assert list(epochs["stage"]) == ["prune step 1", "prune step 2"]


@pytest.mark.parametrize(
    "method", [name for name, method in PRUNING_METHODS.items() if issubclass(method, ZerosMethod)]
)
def test_every_method_that_makes_zeros_reaches_its_target_and_records_its_parent(
    chestx: Chestx, study: Path, method: str
) -> None:
    steps = 2 if "steps" in declared_fields(PRUNING_METHODS[method]) else 1
    in_steps = ("--steps", steps) if steps > 1 else ()
    words = ("--method", method, "--amount", "0.3", *in_steps, "--finetune-epochs", "0")
    record = chestx("prune", "--study", study, "--from", "oneshot-50", *words, "--json").json()
    assert record["parent"] == "oneshot-50"
    assert record["name"].startswith(f"oneshot-50-{method}")
    assert record["parent_sha256"] == variant(study, "oneshot-50")["model_sha256"]
    # A share of what is left: the parent's zeros are not left.
    assert record["pruning"]["target_sparsity"] == pytest.approx(1 - 0.5 * 0.7**steps, abs=1e-3)
    assert record["pruning"]["achieved_sparsity"] == pytest.approx(1 - 0.5 * 0.7**steps, abs=2e-3)
    parent, own = weights(study, "oneshot-50"), weights(study, record["name"])
    assert all((own[name][parent[name] == 0] == 0).all() for name in WEIGHTS)


def test_fine_tuning_a_pruned_parent_keeps_its_zeros(chestx: Chestx, study: Path) -> None:
    words = ("--method", "iterative", "--steps", 1, "--finetune-epochs", 1, "--batch-size", 16)
    record = chestx("prune", "--study", study, "--from", "oneshot-50", *words, "--json").json()
    assert record["pruning"]["achieved_sparsity"] == pytest.approx(1 - 0.5 * 0.8, abs=2e-3)
    parent, own = weights(study, "oneshot-50"), weights(study, record["name"])
    assert all((own[name][parent[name] == 0] == 0).all() for name in WEIGHTS)


def test_options_without_effect_make_no_other_variant(chestx: Chestx, study: Path) -> None:
    for words in (("prune", "--lr", "0.5", "--seed", "7"), ("quantize", "--seed", "7")):
        again = chestx(*words, "--study", study)
        assert again.code == 0
        assert "already done" in again.err


@pytest.mark.parametrize("method", list(QUANTIZATION_METHODS))
def test_every_quantization_method_writes_an_onnx_file_that_agrees(chestx: Chestx, study: Path, method: str) -> None:
    record = chestx("quantize", "--study", study, "--method", method, "--from", "iterative-2x20", "--json").json()
    assert record["kind"] == "onnx"
    folder = study / "variants" / record["name"]
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    logits = session.run(None, {"images": np.zeros((3, 3, 32, 32), dtype=np.float32)})[0]
    assert logits.shape == (3, 2)
    assert record["quantization"]["max_probability_difference"] < 0.1
    assert 0 < record["quantization"]["quantized_share"] <= 1


def test_exported_files_hold_no_paths_of_this_machine(finished: Path) -> None:
    import torch

    exports = [*(finished / "cache").glob("onnx-*.onnx"), finished / "variants" / "dynamic-int8" / "model.onnx"]
    assert len(exports) == 4
    for path in exports:
        content = path.read_bytes()
        for place in (Path(torch.__file__).parents[1], Path(__file__).parents[2], Path.home()):
            assert str(place).encode() not in content
        assert b".py" not in content


def test_dynamic_quantization_says_what_it_touches(finished: Path) -> None:
    record = variant(finished, "dynamic-int8")
    linear = 16 * 512 + 512 * 2
    assert record["quantization"]["quantized_parameters"] == linear
    assert record["quantization"]["quantized_share"] == pytest.approx(linear / record["parameters"])
    assert record["parameters"] == variant(finished, "baseline")["parameters"]


def test_an_onnx_variant_cannot_be_a_parent(chestx: Chestx, study: Path) -> None:
    for command in ("prune", "quantize", "sensitivity"):
        outcome = chestx(command, "--study", study, "--from", "dynamic-int8")
        assert outcome.code == 1
        assert "torch weights are needed" in outcome.err


def test_the_same_options_again_change_nothing(chestx: Chestx, study: Path) -> None:
    before = tree(study / "variants")
    for words in (("prune", "--method", "oneshot"), ("quantize",)):
        again = chestx(*words, "--study", study)
        assert again.code == 0
        assert "already done" in again.err
    refused = chestx("prune", "--method", "oneshot", "--study", study, "--finetune-epochs", "1")
    assert refused.code == 1
    assert "finetune_epochs: 0 -> 1" in refused.err
    assert "--name" in refused.err
    assert "--force" in refused.err
    assert tree(study / "variants") == before


def test_a_new_baseline_makes_its_children_outdated(chestx: Chestx, study: Path) -> None:
    from conftest import TINY

    chestx("train", "--study", study, *TINY, "--epochs", 1, "--batch-size", 16, "--force")
    outcome = chestx("prune", "--method", "oneshot", "--study", study)
    assert outcome.code == 1
    assert "its parent baseline has changed since" in outcome.err
    notes = chestx("evaluate", "--study", study, "--json").json()["notes"]
    assert any("oneshot-50 was made from an earlier version of baseline" in note for note in notes)
