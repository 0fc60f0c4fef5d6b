"""Quantization-aware training: fine-tuning with the rounding of the exported INT8 file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.compression.quantization.onnx_graph import integer_biases, means_to_pooling, named_weights
from chestx_cli.compression.quantization.ranges import CalibrationSet, calibration_batches
from chestx_cli.inference.onnx_export import exported_model, require_rounding_alone
from chestx_cli.inference.runtimes import onnx_session, predict
from chestx_cli.networks.recipe import Recipe
from chestx_cli.networks.training import fit
from chestx_cli.networks.training_data import predict_logits

if TYPE_CHECKING:
    from torch import nn

    from chestx_cli.compression.quantization.target_cpus import Numerics
    from chestx_cli.core.progress import Reporter
    from chestx_cli.networks.training_data import FitData
    from chestx_cli.records.variant import EpochRow
    from chestx_cli.store.checkpoints import Checkpoints

STAGE = "quantization-aware training"


@dataclass(frozen=True, kw_only=True)
class TrainedFile:
    """The file of a network after quantization-aware training, its epochs, and the largest probability difference."""

    content: bytes
    rows: list[EpochRow]
    difference: float


def train_quantized(
    network: nn.Module,
    data: FitData,
    chosen: CalibrationSet,
    numerics: Numerics,
    recipe: Recipe,
    reporter: Reporter,
    checkpoints: Checkpoints,
) -> TrainedFile:
    """Calibrate a network, train it in FP32 with fake quantization, and export it as a QDQ file.

    Call inside `reproducible`. Raises ExportError if the file's probabilities on the validation images differ from the
    trained network's by more than rounding does.
    """
    import torch

    from chestx_cli.compression.quantization.fake_quantize import fake_quantized, make_exportable, observe

    traced = fake_quantized(network, numerics)
    with reporter.progress("Calibrating", len(chosen.rows)) as advance:
        observe(traced, (torch.from_numpy(batch) for batch in calibration_batches(data, chosen)), advance)
    rows = fit(traced, data, recipe, reporter, stage=STAGE, checkpoints=checkpoints)
    validation = data.split.indices("val")
    trained = (
        predict_logits(traced, data, validation, device="cpu", precision=recipe.precision)
        .double()
        .softmax(dim=1)
        .numpy()
    )
    make_exportable(traced)
    model = exported_model(traced, data.preprocessing.normalised(data.pixels[validation[:2]]))
    named_weights(model)
    means_to_pooling(model)
    integer_biases(model)
    content: bytes = model.SerializeToString(deterministic=True)
    file = predict(onnx_session(content), data.pixels, validation, data.preprocessing)
    difference = require_rounding_alone(
        "the exported file's probabilities differ from the trained network's", file, trained
    )
    return TrainedFile(content=content, rows=rows, difference=difference)
