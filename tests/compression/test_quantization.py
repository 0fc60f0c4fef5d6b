"""`chestx quantize --method static` and `qat`, `chestx sensitivity --quantization`: safe and verified INT8."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from chestx_cli.compression.quantization import qat
from chestx_cli.compression.quantization.methods import QUANTIZATION_METHODS
from chestx_cli.compression.quantization.onnx_graph import weight_rows, without_weight_shapes
from chestx_cli.compression.quantization.ranges import CALIBRATIONS, collect_ranges, draw_calibration_set
from chestx_cli.compression.quantization.target_cpus import TARGET_CPUS
from chestx_cli.core.errors import ExportError
from chestx_cli.core.machine import has_exact_products
from chestx_cli.data.images.pixel_cache import sums_of, write_pixels
from chestx_cli.evaluation.statistics.outcome import Outcome
from chestx_cli.inference import onnx_export, runtimes
from chestx_cli.inference.device import chestx_bundle
from chestx_cli.records.variant import SOME_IN_FP32, LayerSpeeds, SlowerLayerRow
from chestx_cli.store.directory import Study
from conftest import TINY, Chestx, draw_image

LAYERS = {"conv1", "conv2", "fc.0", "fc.4"}
QDQ_METHODS = [name for name, method in QUANTIZATION_METHODS.items() if method.qdq]
FAST = {"static": (), "qat": ("--epochs", 1, "--batch-size", 16)}


def made(chestx: Chestx, study: Path, method: str, *words: object) -> dict[str, Any]:
    """Return the record of a variant quantized anew."""
    outcome = chestx("quantize", "--study", study, "--method", method, *FAST[method], *words, "--force", "--json")
    assert outcome.code == 0, outcome.err
    return outcome.json()


def model_of(study: Path, record: dict[str, Any]) -> onnx.ModelProto:
    return onnx.load(study / "variants" / record["name"] / "model.onnx")


def integer_weights(model: onnx.ModelProto) -> dict[str, npt.NDArray[np.int8]]:
    """Return the 8-bit weights by layer."""
    return {
        tensor.name.removesuffix(".weight_quantized"): numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) >= 2
    }


def change_pixels(study: Path, *parts: str) -> None:
    """Replace the cached pixels of parts of the split with noise."""
    split = Study(study).read_split()
    (path,) = (study / "cache").glob("pixels-*.npy")
    pixels = np.load(path)
    rows = np.isin(split.parts, parts)
    pixels[rows] = np.random.default_rng(3).integers(0, 256, pixels[rows].shape, dtype=np.uint8)
    with write_pixels(path.parent, pixels.shape[1]) as writer:
        writer.places.put(0, pixels)
        writer.took(0, sums_of(pixels))
        writer.keep(path)


@pytest.mark.parametrize("method", QDQ_METHODS)
def test_the_file_depends_on_training_images_only_and_is_the_same_every_time(
    chestx: Chestx, study: Path, method: str
) -> None:
    before = made(chestx, study, method)
    change_pixels(study, "val", "test")
    after = made(chestx, study, method)
    assert after["model_sha256"] == before["model_sha256"]
    assert after["calibration_sha256"] == before["calibration_sha256"]
    assert after["quantization"]["max_probability_difference"] != before["quantization"]["max_probability_difference"]
    change_pixels(study, "train")
    assert made(chestx, study, method)["model_sha256"] != before["model_sha256"]


def test_calibration_images_are_drawn_by_seed_from_training(finished: Path) -> None:
    split = Study(finished).read_split()
    training = set(split.indices("train").tolist())
    first, again, other = (draw_calibration_set(split, 5, seed) for seed in (1, 1, 2))
    assert set(first.rows.tolist()) <= training
    assert len(set(first.rows.tolist())) == 5
    assert first.sha256 == again.sha256
    assert first.sha256 != other.sha256
    assert set(draw_calibration_set(split, 10_000, 1).rows.tolist()) == training


@pytest.mark.parametrize("calibration", list(CALIBRATIONS))
def test_every_calibration_takes_the_ranges_of_its_batches(calibration: str) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["images"], ["logits"], "relu")],
        "one",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["N", 100])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 100])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    values = np.random.default_rng(0).normal(0, 1, (6, 100)).astype(np.float32)
    seen: list[int] = []
    ranges = collect_ranges(model, ("Relu",), calibration, iter([values[:4], values[4:]]), seen.append)
    low, high = (float(np.ravel(end)[0]) for end in ranges["images"].range_value)
    assert seen == [4, 2]
    assert values.min() * 1.01 <= low < -1
    assert 1 < high <= values.max() * 1.01
    if calibration == "minmax":
        assert (low, high) == (values.min(), values.max())


@pytest.mark.parametrize(("method", "target_cpu"), [("qat", "any"), *(("static", cpu) for cpu in TARGET_CPUS)])
def test_weights_stay_within_what_the_target_multiplies_exactly(
    chestx: Chestx, study: Path, method: str, target_cpu: str
) -> None:
    record = made(chestx, study, method, "--target-cpu", target_cpu)
    model = model_of(study, record)
    weights = integer_weights(model)
    assert set(weights) == LAYERS
    limit = TARGET_CPUS[target_cpu].weight_limit
    largest = {int(np.abs(weight.astype(int)).max()) for weight in weights.values()}
    assert largest == {limit}
    assert (255 * limit * 2 < 2**15) == (target_cpu == "any")
    assert any("exact on" in note for note in record["notes"])
    assert any(f"--target-cpu {target_cpu} {TARGET_CPUS[target_cpu].measured}" in note for note in record["notes"])
    # Sessions request exact products where they could saturate, so the file means the same on every processor.
    assert record["quantization"]["kernel_difference"] < 0.01
    constants = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    zero_points = {constants[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    signed = TARGET_CPUS[target_cpu].signed_activations
    assert zero_points == {onnx.TensorProto.INT8 if signed else onnx.TensorProto.UINT8}


@pytest.mark.parametrize("is_exact", [True, False])
def test_slower_kernels_are_requested_only_where_sums_of_8_bits_could_saturate(
    monkeypatch: pytest.MonkeyPatch, *, is_exact: bool
) -> None:
    given: list[str | None] = []

    def session(_model: object, options: onnxruntime.SessionOptions, **_: object) -> Any:
        try:
            given.append(options.get_session_config_entry("session.x64quantprecision"))
        except RuntimeError:
            given.append(None)
        inputs, outputs = [SimpleNamespace(name="x", shape=["n", 3, 32, 32])], [SimpleNamespace(shape=["n", 2])]
        return SimpleNamespace(get_inputs=lambda: inputs, get_outputs=lambda: outputs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(runtimes, "has_exact_products", lambda: is_exact)
    monkeypatch.setattr(chestx_bundle, "has_vnni", lambda: is_exact)
    runtimes.onnx_session(b"", threads=1)
    described: Any = {"labels": ["A", "B"], "preprocessing": {"image_size_px": 32}}
    chestx_bundle.open_model(b"", described, threads=1)
    assert given == [None if is_exact else "1"] * 2


@pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="other processors have no such instructions")
def test_a_bundle_knows_the_processor_as_chestx_does() -> None:
    assert chestx_bundle.has_vnni() == has_exact_products()


@pytest.mark.parametrize("method", QDQ_METHODS)
def test_onnx_runtime_computes_the_whole_network_in_8_bits(
    chestx: Chestx, study: Path, tmp_path: Path, method: str
) -> None:
    record = made(chestx, study, method)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 3
    path = study / "variants" / record["name"] / "model.onnx"
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    fused = Counter(node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node)
    assert fused["QLinearConv"] == 2
    assert fused["QGemm"] == 2
    assert fused["QLinearGlobalAveragePool"] == 1
    # One conversion of the images; the logits are FP32 sums of the last layer.
    assert (fused["QuantizeLinear"], fused["DequantizeLinear"], fused["Relu"]) == (1, 0, 0)
    quantization = record["quantization"]
    assert {(row["layer"], row["bits"]) for row in quantization["weights"]} == {(name, 8) for name in LAYERS}
    assert quantization["quantized_parameters"] == sum(row["weights"] for row in quantization["weights"])
    assert record["nonzero_parameters"] <= record["parameters"]
    # Static files read grey: 4 blocks of 4 pixels instead of 9 of 3 colours, in each of the 8 filters of 3 x 3.
    fewer = {"static": 8 * (27 - 16), "qat": 0}[method]
    parent = json.loads((study / "variants" / "baseline" / "variant.json").read_text())
    assert record["parameters"] == parent["parameters"] - fewer


def pretend(monkeypatch: pytest.MonkeyPatch, costly: set[str]) -> None:
    """Make validation drop by 10 points for each of some layers that a file computes in 8 bits."""

    def judge_on(_data: object, **_: object) -> Callable[..., Outcome]:
        def judge(content: bytes, rows: npt.NDArray[np.int64], _advance: object = None) -> Outcome:
            in_8_bits = {row.layer for row in weight_rows(onnx.load_from_string(content)) if row.bits == 8}
            lost = 0.1 * len(in_8_bits & costly)
            return Outcome(loss=0.1 + lost, accuracy=0.9 - lost, auroc=0.95, log_odds=np.zeros(len(rows)))

        return judge

    monkeypatch.setattr("chestx_cli.commands.quantize.judge_on", judge_on)


def test_max_drop_leaves_as_few_layers_in_fp32_as_are_needed(
    chestx: Chestx, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, {"conv2"})
    record = made(chestx, study, "static", "--max-drop", 0.01)
    quantization = record["quantization"]
    (left,) = quantization["fp32_layers"]
    assert left["layer"] == "conv2"
    assert left["loss_increase"] == pytest.approx(0.1)
    assert {row["layer"]: row["bits"] for row in quantization["weights"]} == {
        name: 32 if name == "conv2" else 8 for name in LAYERS
    }
    assert set(integer_weights(model_of(study, record))) == LAYERS - {"conv2"}
    # The table is the record's: the command finds its variant done and shows it.
    assert (
        "Left in FP32" in chestx("quantize", "--study", study, "--method", "static", "--max-drop", 0.01, "--full").out
    )


def test_a_limit_on_the_drop_adds_layers_to_those_that_are_slower(
    chestx: Chestx, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slower = SlowerLayerRow(
        layer="conv1", fp32_us=1, int8_us=2, times_slower=2, times_slower_interval=(1.9, 2.1), in_fp32=True
    )
    speeds = LayerSpeeds(
        processor="made up",
        threads=1,
        rounds=7,
        timed_layers=4,
        kept=SOME_IN_FP32,
        tried_layers=1,
        speedup=1.1,
        speedup_interval=(1.05, 1.15),
        rows=(slower,),
    )
    monkeypatch.setattr("chestx_cli.compression.quantization.methods.choose_by_speed", lambda *_: speeds)
    pretend(monkeypatch, {"conv1", "conv2"})
    quantization = made(chestx, study, "static", "--skip-slower", "--max-drop", 0.01)["quantization"]
    assert {row["layer"]: row["bits"] for row in quantization["weights"] if row["bits"] != 8} == {
        "conv1": 32,
        "conv2": 32,
    }
    # Only the layer of the drop has a cost in accuracy.
    assert [row["layer"] for row in quantization["fp32_layers"]] == ["conv2"]
    assert [row["layer"] for row in quantization["layer_speeds"]["rows"]] == ["conv1"]


def test_a_drop_that_cannot_be_kept_is_an_error(chestx: Chestx, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, LAYERS)
    outcome = chestx("quantize", "--study", study, "--method", "static", "--max-drop", 0.01)
    assert outcome.code == 1
    assert "2 of the 4 layers in FP32" in outcome.err
    assert not (study / "variants" / "static-int8").exists()


def test_a_file_that_is_not_the_trained_network_is_an_error(
    chestx: Chestx, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(*arguments: Any) -> onnx.ModelProto:
        model = onnx_export.exported_model(*arguments)
        (bias,) = (tensor for tensor in model.graph.initializer if tensor.name == "fc.4.parametrizations.bias.0.stored")
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.array([2, -2], np.float32), bias.name))
        return model

    monkeypatch.setattr(qat, "exported_model", shifted)
    outcome = chestx("quantize", "--study", study, "--method", "qat", *FAST["qat"])
    assert outcome.code == 1
    assert "differ from the trained network's" in outcome.err
    assert not (study / "variants" / "qat-int8").exists()


def test_kernels_that_compute_something_else_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[bool] = []

    def session(_content: bytes, *, literal: bool) -> Any:
        opened.append(literal)
        return literal

    monkeypatch.setattr("chestx_cli.inference.runtimes.onnx_session", session)
    monkeypatch.setattr(
        "chestx_cli.inference.runtimes.predict", lambda compute, *_: np.full((1, 2), 0.4 if compute else 0.6)
    )
    with pytest.raises(ExportError, match=r"8-bit kernels change probabilities by 0\.2 on average"):
        onnx_export.require_kernels_agree(b"", np.zeros(0, np.uint8), np.zeros(0, np.int64), None)  # type: ignore[arg-type]
    assert opened == [False, True]


def test_one_image_near_the_threshold_may_round_differently() -> None:
    first, second = np.full((16, 2), 0.5), np.full((16, 2), 0.5)
    second[3] = 0.56, 0.44
    assert onnx_export.require_rounding_alone("they differ", first, second) == pytest.approx(0.06)
    second[:8] = 0.56, 0.44
    with pytest.raises(ExportError, match=r"they differ by 0\.03 on average, more than 0\.02"):
        onnx_export.require_rounding_alone("they differ", first, second)
    second[3] = np.nan
    with pytest.raises(ExportError):
        onnx_export.require_rounding_alone("they differ", first, second)


def test_training_keeps_the_zeros_of_a_pruned_parent(chestx: Chestx, study: Path) -> None:
    from safetensors.numpy import load_file

    record = made(chestx, study, "qat", "--from", "oneshot-50")
    assert (record["name"], record["parent"]) == ("oneshot-50-qat-int8", "oneshot-50")
    parent = load_file(study / "variants" / "oneshot-50" / "model.safetensors")
    for name, weight in integer_weights(model_of(study, record)).items():
        present = parent[f"{name}.weight"] != 0
        assert not weight[~present].any()
        assert weight.any() == present.any()
    assert record["training"]["precision"] == "fp32"
    assert record["quantization"]["trained_difference"] < 0.01
    assert (study / "variants" / record["name"] / "training.csv").exists()


@pytest.mark.parametrize(
    ("method", "words", "remedy"),
    [
        ("static", ("--epochs", 2), "--method qat"),
        ("qat", ("--max-drop", 0.1), "--method static"),
        ("dynamic", ("--calibration-images", 8), "--method static or qat"),
    ],
)
def test_options_that_a_method_does_not_take_are_usage_errors(
    chestx: Chestx, study: Path, method: str, words: tuple[object, ...], remedy: str
) -> None:
    outcome = chestx("quantize", "--study", study, "--method", method, *words)
    assert outcome.code == 2
    assert f"{words[0]} has no effect with --method {method}" in outcome.err
    assert remedy in outcome.err


def test_sensitivity_to_quantization_measures_every_layer_alone(chestx: Chestx, study: Path) -> None:
    folder = study / "variants" / "baseline"
    pruning = (folder / "sensitivity.json").read_bytes()
    outcome = chestx("sensitivity", "--study", study, "--quantization", "--json")
    assert outcome.code == 0, outcome.err
    record = outcome.json()
    assert {row["layer"] for row in record["rows"]} == LAYERS
    increases = [row["loss_increase"] for row in record["rows"]]
    assert increases == sorted(increases, reverse=True)
    assert all(0 < row["max_probability_difference"] < 0.1 for row in record["rows"])
    assert json.loads((folder / "int8-sensitivity.json").read_text())["rows"] == record["rows"]
    assert (folder / "int8-sensitivity.csv").exists()
    assert (study / "report" / "figures" / "int8-sensitivity.svg").exists()
    assert (folder / "sensitivity.json").read_bytes() == pruning
    some = chestx("sensitivity", "--study", study, "--quantization", "--layers", "fc.*", "--json")
    assert {row["layer"] for row in some.json()["rows"]} == {"fc.0", "fc.4"}
    assert "nothing is stored" in some.err


def test_quantize_where_each_validation_patient_has_one_image(chestx: Chestx, tmp_path: Path) -> None:
    data, study = tmp_path / "data", tmp_path / "study"
    rng = np.random.default_rng(0)
    for label in ("NORMAL", "PNEUMONIA"):
        (data / label).mkdir(parents=True)
        for i in range(20):
            draw_image(rng, bright=label == "PNEUMONIA").save(data / label / f"patient{label}{i:02d}.png")
    words = ("--study", study, "--image-size", 32, "--group-regex", r"patient([A-Z]+\d+)")
    assert chestx("split", data, *words).code == 0
    assert chestx("train", "--study", study, *TINY, "--epochs", 1, "--batch-size", 8).code == 0
    for method in ("dynamic", "static"):
        outcome = chestx("quantize", "--study", study, "--method", method)
        assert outcome.code == 0, outcome.err


def test_notes_of_weights_shapes_go_before_a_runtime_transposes_weights() -> None:
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((3, 4), dtype=np.float32), "weight")
    shapes = {"images": [1, 4], "weight": [3, 4], "product": [1, 3], "logits": [1, 3]}
    notes = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Gemm", ["images", "weight"], ["product"], transB=1),
        helper.make_node("Relu", ["product"], ["logits"]),
    ]
    between = [notes["weight"], notes["product"]]
    graph = helper.make_graph(nodes, "g", [notes["images"]], [notes["logits"]], [weight], value_info=between)
    model = helper.make_model(graph)
    found = onnx.load_from_string(without_weight_shapes(model.SerializeToString()))
    assert [value.name for value in found.graph.value_info] == ["product"]
    del model.graph.value_info[0]
    assert found == model
