"""Weights stored in 16 or 4 bits: what a file unpacks is what was rounded, and is unpacked when it is opened."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import helper, numpy_helper

from chestx_cli.compression.quantization.onnx_graph import count_weights, weight_rows
from chestx_cli.compression.quantization.stored_weights import _packed, in_4_bits, in_16_bits, round_to_4_bits
from chestx_cli.compression.quantization.target_cpus import TARGET_CPUS
from chestx_cli.inference.file_sizes import sparse_bytes
from conftest import Chestx

UNPACKING = {"Cast", "Mul", "Round", "Reshape"}
VALUES = st.floats(-1e3, 1e3, width=32)


def layers(*shapes: tuple[int, ...]) -> onnx.ModelProto:
    """Return a graph of convolutions and a matrix, with weights of these shapes."""
    rng = np.random.default_rng(4)
    nodes, constants, source = [], [], "images"
    for at, shape in enumerate(shapes):
        constants.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), f"layer{at}.weight"))
        nodes.append(helper.make_node("Conv", [source, f"layer{at}.weight"], [f"out{at}"]))
        source = f"out{at}"
    images = helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [None, 3, 8, 8])
    logits = helper.make_tensor_value_info(source, onnx.TensorProto.FLOAT, [None, shapes[-1][0], None, None])
    graph = helper.make_graph(nodes, "layers", [images], [logits], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def opened(content: bytes, folder: Path) -> tuple[Any, Counter[str]]:
    """Return a session of a file, and the operators that are left once it is open."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session, Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


@settings(deadline=None, max_examples=30)
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(8, 40)), elements=VALUES))
def test_a_block_is_rounded_at_least_as_well_as_by_its_largest_weight(values: np.ndarray[Any, Any]) -> None:
    integers, scales = _packed(values, limit=None)
    assert integers.min() >= -8
    assert integers.max() <= 7
    error = np.square(integers * scales.astype(np.float64) - values).sum(axis=1)
    usual = (np.abs(values).max(axis=1, keepdims=True) / 7).astype(np.float16).astype(np.float64)
    usual[usual == 0] = 1
    by_largest = np.square(np.rint(values / usual) * usual - values).sum(axis=1)
    assert (error <= by_largest * 1.01 + 1e-6).all()


@settings(deadline=None, max_examples=30)
@given(
    hnp.arrays(np.int8, st.tuples(st.integers(1, 5), st.integers(8, 40)), elements=st.integers(-127, 127)),
    st.sampled_from([64, 127]),
)
def test_unpacked_8_bit_weights_stay_within_the_limit_of_the_processor(
    values: np.ndarray[Any, Any], limit: int
) -> None:
    integers, scales = _packed(np.clip(values, -limit, limit).astype(np.float32), limit=limit)
    assert np.abs(np.rint(integers * scales.astype(np.float32))).max() <= limit


def test_weights_of_4_bits_take_an_eighth_and_cost_nothing_once_the_file_is_open(tmp_path: Path) -> None:
    model = layers((32, 3, 3, 3), (64, 32, 1, 1), (33, 64, 1, 1), (5, 33, 1, 1))
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    plain = model.SerializeToString()
    in_4_bits(model, 32)
    onnx.checker.check_model(model)
    content = model.SerializeToString()
    bits = {row.layer: (row.weights, row.bits) for row in weight_rows(model)}
    # The input layer in 16 bits; 165 weights are 15 blocks of 11.
    assert bits == {"layer0": (864, 16), "layer1": (2048, 4), "layer2": (2112, 4), "layer3": (165, 4)}
    session, operators = opened(content, tmp_path)
    assert not UNPACKING & operators.keys()
    # As an output, a weight is what the runtime unpacks.
    for name, values in before.items():
        model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, values.shape))
    images = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    shown = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    logits, *weights = shown.run(None, {"images": images})
    assert np.allclose(session.run(None, {"images": images})[0], logits, atol=1e-4)
    for (name, values), unpacked in zip(before.items(), weights, strict=True):
        # Half a step of an eighth of the largest weight of a block, which may be clipped by a fifth.
        assert np.abs(unpacked - values).max() <= np.abs(values).max() * (1e-3 if name == "layer0.weight" else 0.2)
        assert np.unique(unpacked).size <= max(values.size, 16 * values.size // 11)
    nonzero = sum(int(np.count_nonzero(unpacked)) for unpacked in weights)
    assert count_weights(model) == (sum(unpacked.size for unpacked in weights), nonzero)
    assert len(content) < len(plain) / 3
    (tmp_path / "model.onnx").write_bytes(content)
    assert len(content) * 0.8 < sparse_bytes(tmp_path / "model.onnx") <= len(content)


@pytest.mark.parametrize("factor", [1.0, -0.37, 12.5])
def test_rounding_again_changes_nothing_also_after_folding_batch_normalisation(factor: float) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3), torch.nn.Conv2d(3, 16, 3), torch.nn.Linear(7, 5))
    before = [layer.get_parameter("weight").detach().clone() for layer in network]
    round_to_4_bits(network, 32)
    after = [layer.get_parameter("weight").detach().clone() for layer in network]
    # Not the filters that read the image; 35 weights have no blocks of eight or more.
    assert [torch.equal(*pair) for pair in zip(before, after, strict=True)] == [False, True, True]
    weight = network[0].get_parameter("weight")
    with torch.no_grad():
        weight.mul_(factor)
    round_to_4_bits(network, 32)
    assert torch.allclose(weight, after[0] * factor, rtol=1e-3, atol=1e-6)


def test_weights_of_16_bits_take_half_and_differ_by_their_rounding(tmp_path: Path) -> None:
    model = layers((16, 3, 3, 3), (4, 16, 1, 1))
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.full((16, 3, 3, 3), 1e5, np.float32), "layer0.weight")
    )
    in_16_bits(model)
    assert {row.bits for row in weight_rows(model)} == {16}
    # A weight beyond the range of FP16 becomes its largest number, not infinite.
    (largest,) = [numpy_helper.to_array(tensor).max() for tensor in model.graph.initializer if "layer0" in tensor.name]
    assert float(largest) == 65504
    _, operators = opened(model.SerializeToString(), tmp_path)
    assert not UNPACKING & operators.keys()


@pytest.mark.parametrize("target_cpu", TARGET_CPUS)
def test_an_int8_file_with_4_bit_weights_still_computes_in_8_bits(
    chestx: Chestx, study: Path, tmp_path: Path, target_cpu: str
) -> None:
    words = ("quantize", "--method", "static", "--calibration-images", 8, "--target-cpu", target_cpu, "--study", study)
    whole = chestx(*words, "--json").json()
    packed = chestx(*words, "--int4-weights", "--json").json()
    assert packed["name"] == "static-int8-int4-weights"
    assert packed["model_bytes"] < whole["model_bytes"]
    assert packed["quantization"]["bits"] == 4
    assert packed["quantization"]["quantized_share"] > 0.5
    files = [study / "variants" / record["name"] / "model.onnx" for record in (whole, packed)]
    (_, before), (_, after) = (opened(file.read_bytes(), tmp_path) for file in files)
    assert before["QLinearConv"] == after["QLinearConv"] > 0
    assert "Round" not in after


def test_variants_of_stored_weights_are_judged_exported_and_never_faster_by_words(
    chestx: Chestx, study: Path, tmp_path: Path
) -> None:
    baseline = study / "variants" / "baseline" / "variant.json"
    for method, bits in (("fp16", 16), ("int4", 4)):
        outcome = chestx("quantize", "--method", method, "--study", study, "--json")
        assert outcome.code == 0, outcome.err
        record = outcome.json()
        assert (record["name"], record["parent"], record["quantization"]["bits"]) == (method, "baseline", bits)
        assert record["parameters"] == json.loads(baseline.read_text())["parameters"]
        assert record["quantization"]["target_cpu"] is None
        assert f"stored in {bits} bits and computed in FP32" in record["answer"]["sentence"]
        assert "not faster than FP32, and needs about the same memory" in " ".join(record["notes"])
        refused = chestx("quantize", "--method", method, "--target-cpu", "vnni", "--study", study)
        assert refused.code == 2
        assert "--target-cpu has no effect" in refused.err
    evaluated = chestx("evaluate", "--study", study, "--json")
    assert evaluated.code == 0, evaluated.err
    assert {"fp16", "int4"} <= {row["variant"] for row in evaluated.json()["rows"]}
    out = tmp_path / "bundle"
    outcome = chestx("export", "int4", "--anyway", "--study", study, "--out", out)
    assert outcome.code == 0, outcome.err
    assert (out / "model.onnx").read_bytes() == (study / "variants" / "int4" / "model.onnx").read_bytes()
