"""Static INT8: weights and activations in 8 bits, with activation ranges fixed by calibration."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from chestx_cli.compression.quantization.grey_input import read_grey
from chestx_cli.compression.quantization.onnx_graph import GraphLayer, free_outputs, layers_of, quantizable_graph
from chestx_cli.compression.quantization.ranges import calibration_batches, collect_ranges
from chestx_cli.compression.quantization.stored_weights import BLOCK_SIZE, in_4_bits
from chestx_cli.core.errors import ChestxError
from chestx_cli.core.progress import ignored
from chestx_cli.evaluation.statistics.outcome import Outcome, log_odds_of_classes, outcome_of
from chestx_cli.inference.runtimes import onnx_session, predict

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx

    from chestx_cli.compression.quantization.ranges import CalibrationSet
    from chestx_cli.compression.quantization.target_cpus import Numerics
    from chestx_cli.core.progress import Advance, Reporter
    from chestx_cli.networks.training_data import FitData

# Operators that ONNX Runtime computes in 8 bits on a CPU; all others stay in FP32, with a conversion on either side.
INT8_OPS = (
    "Add",
    "AveragePool",
    "Clip",
    "Concat",
    "Conv",
    "Flatten",
    "Gemm",
    "GlobalAveragePool",
    "LeakyRelu",
    "MatMul",
    "MaxPool",
    "Mul",
    "Relu",
    "Reshape",
    "Sigmoid",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
# Number of images used to rank the layers; the drop is always measured on all images.
RANKING_IMAGES = 128


@dataclass(frozen=True, kw_only=True)
class CalibratedGraph:
    """An FP32 graph, its layers by name, its activation ranges, and the 8-bit number formats to use.

    int4_weights: whether the 8-bit weights are stored as blocks of 4-bit integers. always_fp32: layers that stay in
    FP32 unless they are quantized alone.
    """

    graph: onnx.ModelProto
    layers: dict[str, GraphLayer]
    ranges: Any
    numerics: Numerics
    int4_weights: bool = False
    always_fp32: tuple[str, ...] = ()

    def quantized(self, *, only: Collection[str] = (), excluded: Collection[str] = ()) -> bytes:
        """Return the graph as a QDQ file: all layers in 8 bits, only those in `only`, or all but `excluded`.

        Weights are quantized per output channel, symmetrically; activations per tensor (Jacob et al., CVPR 2018).
        """
        from onnxruntime.quantization import QDQQuantizer, QuantType
        from onnxruntime.quantization.calibrate import TensorsData
        from onnxruntime.quantization.onnx_model import ONNXModel

        quantizer = QDQQuantizer(
            copy.deepcopy(self.graph),
            per_channel=True,
            reduce_range=self.numerics.reduced,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8 if self.numerics.signed_activations else QuantType.QUInt8,
            # A copy, because the quantizer changes it: it narrows ranges before clipping activations, which another
            # call may keep in FP32.
            tensors_range=TensorsData(self.ranges.calibration_method, dict(self.ranges.items())),
            nodes_to_quantize=[node for name in only for node in self.layers[name].nodes],
            nodes_to_exclude=[self.layers[name].nodes[0] for name in (*excluded, *(() if only else self.always_fp32))],
            op_types_to_quantize=list(INT8_OPS),
            extra_options={},
        )
        model = quantizer.quantize_model()
        free_outputs(model)
        # The conversions were appended after the nodes that read them, which ONNX does not allow.
        ONNXModel(model).topological_sort()
        if self.int4_weights:
            in_4_bits(model, BLOCK_SIZE, self.numerics)
        content: bytes = model.SerializeToString(deterministic=True)
        return content


def calibrated_graph(
    fp32: bytes,
    data: FitData,
    chosen: CalibrationSet,
    *,
    method: str,
    numerics: Numerics,
    reporter: Reporter,
    int4_weights: bool = False,
) -> CalibratedGraph:
    """Calibrate an FP32 ONNX file on a set of training images by a registered method; its graph then reads grey."""
    import numpy as np
    from onnxruntime.quantization.calibrate import TensorData

    graph = quantizable_graph(fp32)
    exact = read_grey(graph, data.preprocessing)
    with reporter.progress("Calibrating", len(chosen.rows)) as advance:
        ranges = collect_ranges(graph, INT8_OPS, method, calibration_batches(data, chosen), advance)
    for name, (low, high) in exact.items():
        ranges[name] = TensorData(lowest=np.float32(low), highest=np.float32(high))
    return CalibratedGraph(
        graph=graph, layers=layers_of(graph), ranges=ranges, numerics=numerics, int4_weights=int4_weights
    )


class Judge(Protocol):
    """Measures an ONNX file on rows of the split; `advance` takes the number of images of each finished batch."""

    def __call__(self, content: bytes, rows: npt.NDArray[np.int64], advance: Advance = ignored) -> Outcome:
        """Return the outcome of the model file `content`."""


def judge_on(data: FitData, *, threshold: float) -> Judge:
    """Return a function that measures ONNX files on validation images."""

    def judge(content: bytes, rows: npt.NDArray[np.int64], advance: Advance = ignored) -> Outcome:
        compute = onnx_session(content)
        probabilities = predict(compute, data.pixels, rows, data.preprocessing, advance)
        log_odds = log_odds_of_classes(probabilities, data.split.positive)
        return outcome_of(log_odds, data.split.is_positive(rows), threshold)

    return judge


def drop_of(before: Outcome, after: Outcome) -> float:
    """Return the larger of the drops in accuracy and AUROC; negative if both have risen."""
    return max(before.accuracy - after.accuracy, before.auroc - after.auroc)


def outcomes_alone(
    calibrated: CalibratedGraph,
    layers: Collection[str],
    judge: Judge,
    rows: npt.NDArray[np.int64],
    advance: Callable[[], None],
) -> dict[str, Outcome]:
    """Return the outcome on validation `rows` [n] with each layer alone in 8 bits, all others in FP32."""
    outcomes = {}
    for name in layers:
        outcomes[name] = judge(calibrated.quantized(only=(name,)), rows)
        advance()
    return outcomes


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A quantized file with its outcome and excluded layers, each with the loss increase it would cause alone."""

    content: bytes
    outcome: Outcome
    excluded: dict[str, float]


def within_drop(
    calibrated: CalibratedGraph,
    fp32: bytes,
    judge: Judge,
    rows: npt.NDArray[np.int64],
    *,
    max_drop: float,
    reporter: Reporter,
) -> Kept:
    """Quantize with the fewest layers in FP32 that keep the drop on validation `rows` within `max_drop`.

    Layers are excluded in order of decreasing loss increase; their number is found by doubling, then bisection. Raises
    ChestxError if half of the layers in FP32 are not enough.
    """
    before = judge(fp32, rows)

    def attempt(excluded: dict[str, float]) -> Kept:
        content = calibrated.quantized(excluded=excluded)
        return Kept(content=content, outcome=judge(content, rows), excluded=excluded)

    full = attempt({})
    if drop_of(before, full.outcome) <= max_drop:
        return full
    layers = [name for name in calibrated.layers if name not in calibrated.always_fp32]
    with reporter.progress("Effect of each layer", len(layers)) as advance:
        # Evenly spaced rows, because the manifest is ordered by class.
        ranking_rows = rows[:: math.ceil(len(rows) / RANKING_IMAGES)]
        loss = judge(fp32, ranking_rows).loss
        alone = outcomes_alone(calibrated, layers, judge, ranking_rows, advance)
    ranked = sorted(alone, key=lambda name: alone[name].loss, reverse=True)

    def excluding(count: int) -> Kept:
        return attempt({name: alone[name].loss - loss for name in ranked[:count]})

    return _fewest(excluding, before, len(ranked), max_drop)


def _fewest(excluding: Callable[[int], Kept], before: Outcome, n_layers: int, max_drop: float) -> Kept:
    limit = max(1, n_layers // 2)
    low, high = 0, 1
    while drop_of(before, (best := excluding(high)).outcome) > max_drop:
        if high == limit:
            raise ChestxError(
                f"with {limit} of the {n_layers} layers in FP32 the validation drop is still above {max_drop:g}",
                "raise --max-drop, or use --method qat",
            )
        low, high = high, min(high * 2, limit)
    while high - low > 1:
        middle = (low + high) // 2
        attempt = excluding(middle)
        if drop_of(before, attempt.outcome) <= max_drop:
            best, high = attempt, middle
        else:
            low = middle
    return best
