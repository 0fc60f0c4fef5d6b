"""The first convolution of INT8 files: what it computes from grey pixels, and where it is left as it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from torch.nn import functional as F

from chestx_cli.compression.quantization.grey_input import BLOCKS, grey_convolution, read_grey
from chestx_cli.inference.onnx_export import export_onnx
from chestx_cli.inference.runtimes import onnx_session
from chestx_cli.networks.backbones import BACKBONES, build_classifier
from chestx_cli.networks.weights.safe_readers import ONNX_OPERATORS
from chestx_cli.records.preprocessing import Preprocessing

IMAGENET = Preprocessing(image_size_px=32)
# Padding with zero is then the same grey level, 102, in every channel.
ONE_LEVEL = replace(IMAGENET, mean=(0.4, 0.4, 0.4), std=(0.2, 0.3, 0.25))


def greys(side_px: int, seed: int, images: int = 2) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (images, side_px, side_px), dtype=np.uint8)


def outputs(
    pads: tuple[int, int, int, int], size: tuple[int, int], side_px: int, seed: int, preprocessing: Preprocessing
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return what a random convolution computes from three channels, and what its grey one does [N, out, H, W]."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((5, 3, *size)).astype(np.float32)
    bias = rng.standard_normal(5).astype(np.float32)
    colours = preprocessing.normalised(greys(side_px, seed))
    top, left, bottom, right = pads
    padded = F.pad(torch.from_numpy(colours), (left, right, top, bottom))
    expected = F.conv2d(padded.double(), torch.from_numpy(weight).double(), torch.from_numpy(bias).double(), stride=2)
    made = grey_convolution(weight, bias, pads, side_px, preprocessing)
    blocks = F.pixel_unshuffle(torch.from_numpy(colours[:, :1]).double() - made.zero, 2)
    top, left, bottom, right = made.pads
    padded = F.pad(blocks, (left, right, top, bottom))
    actual = F.conv2d(padded, torch.from_numpy(made.weight).double(), torch.from_numpy(made.bias).double())
    return expected.numpy(), actual.numpy()


@given(
    pads=st.tuples(*[st.integers(0, 4)] * 4),
    size=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    side_px=st.integers(1, 8).map(lambda half: 2 * half),
    seed=st.integers(0, 99),
)
def test_a_grey_convolution_computes_the_same(
    pads: tuple[int, int, int, int], size: tuple[int, int], side_px: int, seed: int
) -> None:
    assume(side_px + min(pads[0] + pads[2] - size[0], pads[1] + pads[3] - size[1]) >= 0)
    expected, actual = outputs(pads, size, side_px, seed, ONE_LEVEL)
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_channels_of_other_means_change_the_border_alone_and_little() -> None:
    expected, actual = outputs((3, 3, 3, 3), (7, 7), 32, 1, IMAGENET)
    difference = np.abs(actual - expected)
    # Outputs whose filters reach over the border: two rows and columns at the start, and one at the end.
    assert difference[:, :, 2:-1, 2:-1].max() < 1e-4
    assert 0 < difference.max() < 0.25 * np.abs(expected).max()


def test_a_filter_of_zeros_stays_one() -> None:
    made = grey_convolution(np.zeros((2, 3, 3, 3), np.float32), np.ones(2, np.float32), (1, 1, 1, 1), 32, IMAGENET)
    assert not made.weight.any()
    assert made.bias.tolist() == [1, 1]


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_every_backbone_predicts_the_same_from_one_channel(backbone: str) -> None:
    torch.manual_seed(0)
    side_px = 64
    inputs = ONE_LEVEL.normalised(greys(side_px, 3))
    fp32 = export_onnx(build_classifier(backbone, 2).eval(), inputs)
    graph = onnx.load_from_string(fp32)
    exact = read_grey(graph, ONE_LEVEL)
    # ConvNeXt's first convolution moves by four pixels.
    assert list(exact) == ([] if backbone == "convnext_tiny" else [BLOCKS])
    onnx.checker.check_model(graph, full_check=True)
    assert {node.op_type for node in graph.graph.node} <= ONNX_OPERATORS
    expected = onnx_session(fp32)(inputs)
    if exact:
        inputs = np.concatenate([inputs[:, :1], np.full_like(inputs[:, 1:], np.nan)], axis=1)
    actual = onnx_session(graph.SerializeToString())(inputs)
    np.testing.assert_allclose(actual, expected, atol=1e-4 * max(1, np.abs(expected).max()))


def test_every_grey_level_is_an_integer_of_its_own() -> None:
    weight, bias = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32), np.zeros(4, np.float32)
    made = grey_convolution(weight, bias, (1, 1, 1, 1), 32, IMAGENET)
    levels = IMAGENET.normalised(np.arange(256, dtype=np.uint8).reshape(1, 16, 16))[:, 0].ravel() - np.float32(
        made.zero
    )
    black, white = made.span
    integers = (levels - black) / ((white - black) / 255)
    np.testing.assert_allclose(integers, np.arange(256), atol=1e-3)
    # Zero, which is what padding adds, is one of them.
    assert (-black / (white - black) * 255) == pytest.approx(round(-black / (white - black) * 255))


CONVOLUTION = {"strides": [2, 2], "kernel_shape": [3, 3]}
OTHERS: dict[str, dict[str, Any]] = {
    "odd side": {},
    "stride 1": {"strides": [1, 1]},
    "dilated": {"dilations": [2, 2]},
    "a group per channel": {"group": 3},
    "padding left to the runtime": {"auto_pad": "SAME_UPPER"},
    "a second reader": {},
    "computed weights": {},
}


@pytest.mark.parametrize("change", OTHERS)
def test_other_graphs_are_left_as_they_are(change: str) -> None:
    side_px = 33 if change == "odd side" else 32
    channels = 1 if change == "a group per channel" else 3
    weight = "computed" if change == "computed weights" else "weight"
    nodes = [
        helper.make_node("Identity", ["weight"], ["computed"], "identity"),
        helper.make_node("Conv", ["images", weight, "bias"], ["logits"], "conv", **CONVOLUTION | OTHERS[change]),
    ]
    if change == "a second reader":
        nodes.append(helper.make_node("ReduceMean", ["images"], ["mean"], "mean"))
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_model(
        helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info("images", kind, ["batch", 3, side_px, side_px])],
            [helper.make_tensor_value_info("logits", kind, None)],
            [
                numpy_helper.from_array(np.ones((3, channels, 3, 3), np.float32), "weight"),
                numpy_helper.from_array(np.ones(3, np.float32), "bias"),
            ],
        )
    )
    before = graph.SerializeToString(deterministic=True)
    assert read_grey(graph, IMAGENET) == {}
    assert graph.SerializeToString(deterministic=True) == before
