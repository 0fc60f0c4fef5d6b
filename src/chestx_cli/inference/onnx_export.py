"""ONNX export of torch variants; every export is checked against torch."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from typing import TYPE_CHECKING, Any

from chestx_cli.core.errors import ExportError
from chestx_cli.core.files import write_atomic
from chestx_cli.core.progress import ignored
from chestx_cli.data.streams import open_images
from chestx_cli.inference.runtimes import Model
from chestx_cli.networks.weights.serialization import load_network

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    import onnx
    from torch import nn

    from chestx_cli.core.command import Run
    from chestx_cli.core.progress import Advance
    from chestx_cli.data.images.pixel_cache import Pixels
    from chestx_cli.data.streams import DecodedImages
    from chestx_cli.records.preprocessing import Preprocessing
    from chestx_cli.records.variant import VariantRecord
    from chestx_cli.store.directory import Study
    from chestx_cli.store.split import Split

# Logits differ only by reordered FP32 sums; a difference of 1e-4 changes a probability by less than 3e-5.
TOLERANCE = 1e-4
CHECKED_IMAGES = 16
# Mean change of a probability. Integer kernels and FP32 round sums differently, which moves single images near the
# threshold by more than 0.05; a kernel that saturates, or a wrong range, changes most images.
ROUNDING_TOLERANCE = 0.02
INPUT, OUTPUT = "images", "logits"
PERCENT = 100
# Shares of an export's time, measured on ResNet50: tracing, decomposing, translating, optimising; and the exporter's
# mark of a stage that is done.
STAGES_PERCENT, DONE = (20, 62, 4, 8), "✅"


def export_onnx(network: nn.Module, inputs: npt.NDArray[np.float32], advance: Advance = ignored) -> bytes:
    """Export a network as an ONNX file from `images` [N, 3, H, W] float32 to `logits` [N, classes], with N dynamic.

    Batch normalisation is folded into the convolutions. The file is run on `inputs` and compared with torch; raises
    ExportError if a logit differs by more than 1e-4 times the largest (at least 1). advance: called with hundredths of
    the work, PERCENT in total.
    """
    content: bytes = exported_model(network, inputs[:2], advance).SerializeToString()
    _require_agreement(network, content, inputs)
    return content


def exported_model(network: nn.Module, inputs: npt.NDArray[np.float32], advance: Advance = ignored) -> onnx.ModelProto:
    """Export a network as an ONNX graph, traced on two inputs [2, 3, H, W], without comparing it with the network."""
    import numpy as np
    import torch

    network.eval()
    example = torch.from_numpy(np.ascontiguousarray(inputs))
    with _quiet(advance), torch.inference_mode(False), torch.no_grad():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            # Prints a line after each stage, which is counted and not shown.
            verbose=True,
        )
    assert program is not None  # noqa: S101 - None only comes back when a file name was given
    model = program.model_proto
    _forget_sources(model)
    return model


def _forget_sources(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes on the origin of each node, which contain paths of this machine."""
    for item in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    for value in (*model.graph.input, *model.graph.output):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")


def _require_agreement(network: nn.Module, content: bytes, inputs: npt.NDArray[np.float32]) -> None:
    import numpy as np
    import torch

    from chestx_cli.inference.runtimes import onnx_session

    with torch.inference_mode():
        expected = network(torch.from_numpy(inputs)).numpy()
    actual = onnx_session(content)(inputs)
    difference = float(np.abs(actual - expected).max())
    allowed = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if not difference <= allowed:
        raise ExportError(
            f"the exported ONNX file differs from torch by {difference:.2g} in a logit, more than {allowed:.2g}",
            "please report this with the output of --debug",
        )


def require_kernels_agree(
    content: bytes, pixels: Pixels | DecodedImages, rows: npt.NDArray[np.int64], preprocessing: Preprocessing
) -> float:
    """Return the largest difference in a probability between a QDQ file's 8-bit kernels and literal execution.

    rows: the images to predict [n]. Raises ExportError if probabilities differ by more than rounding does: this
    processor's kernels then do not compute what the file specifies.
    """
    from chestx_cli.inference.runtimes import onnx_session, predict

    fused, literal = (
        predict(onnx_session(content, literal=literal), pixels, rows, preprocessing) for literal in (False, True)
    )
    return require_rounding_alone("the 8-bit kernels change probabilities", fused, literal)


def require_rounding_alone(
    what: str, first: npt.NDArray[np.floating[Any]], second: npt.NDArray[np.floating[Any]]
) -> float:
    """Return the largest difference between probabilities [n, classes] that only rounding should change.

    Raises ExportError, which begins with `what`, if their mean difference exceeds `ROUNDING_TOLERANCE` or is no number.
    """
    import numpy as np

    differences = np.abs(first - second)
    mean = float(differences.mean())
    if not mean <= ROUNDING_TOLERANCE:
        raise ExportError(
            f"{what} by {mean:.2g} on average, more than {ROUNDING_TOLERANCE:g}",
            "use --target-cpu any; if you did, please report this with the output of --debug",
        )
    return float(differences.max())


class _Stages(io.StringIO):
    """Counts the stages that the exporter prints as done; if it prints none, nothing is counted."""

    def __init__(self, advance: Advance) -> None:
        super().__init__()
        self._advance, self._left = advance, iter(STAGES_PERCENT)

    def write(self, text: str) -> int:
        """Count a stage if the text has the exporter's mark."""
        if DONE in text:
            self._advance(next(self._left, 0))
        return len(text)


@contextlib.contextmanager
def _quiet(advance: Advance) -> Iterator[None]:
    """Silence the exporter, which writes to stdout and stderr and issues warnings; count its stages."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(_Stages(advance)),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def onnx_file(target: Study, record: VariantRecord) -> Path:
    """Return the path of a variant's ONNX file, which for a torch variant is there once it has been exported."""
    if record.kind == "torch":
        return target.cache / f"onnx-{record.model_sha256[:16]}.onnx"
    return target.variant(record.name) / record.model_file


def model_for(run: Run, target: Study, split: Split, record: VariantRecord, needs: str) -> Model:
    """Return the model file that a runtime needs; a torch variant's ONNX export is cached by its weights' hash."""
    path = target.variant(record.name) / record.model_file
    kind = record.kind
    if needs == "onnx" and kind == "torch":
        path = onnx_file(target, record)
        kind = "onnx"
        if not path.exists():
            pixels = open_images(target, split, record.preprocessing, run.reporter)
            inputs = record.preprocessing.normalised(pixels[split.indices("val")[:CHECKED_IMAGES]])
            with run.reporter.progress(f"Exporting {record.name} to ONNX", PERCENT) as advance:
                write_atomic(path, export_onnx(load_network(target, record), inputs, advance))
    return Model(path=str(path), kind=kind, backbone=record.backbone, n_classes=len(record.classes))
