"""Calibration: activation ranges, measured on training images only."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chestx_cli.core.files import temporary_folder
from chestx_cli.core.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx

    from chestx_cli.networks.training_data import FitData
    from chestx_cli.store.split import Split

# All activations of a batch are in memory at once: 4 images of 224 px through ResNet50 take about 700 MB.
CALIBRATION_BATCH = 4
DEFAULT_IMAGES = 128


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """An ONNX Runtime calibration method and its options."""

    method: str
    options: Mapping[str, float | bool]


CALIBRATIONS: Registry[Calibration] = Registry("calibration", of=Calibration)
CALIBRATIONS.add("minmax", Calibration(method="MinMax", options={}))
CALIBRATIONS.add("entropy", Calibration(method="Entropy", options={}))
CALIBRATIONS.add("percentile", Calibration(method="Percentile", options={"percentile": 99.999, "symmetric": False}))


@dataclass(frozen=True, kw_only=True)
class CalibrationSet:
    """The training images used for calibration: their rows in the split, and a hash over their files' hashes."""

    rows: npt.NDArray[np.int64]
    sha256: str


def draw_calibration_set(split: Split, n_images: int, seed: int) -> CalibrationSet:
    """Draw `n_images` training images without replacement, or all if there are fewer."""
    import numpy as np

    training = split.indices("train")
    drawn = np.random.default_rng(seed).choice(training, size=min(n_images, len(training)), replace=False)
    rows: npt.NDArray[np.int64] = np.sort(drawn)
    return CalibrationSet(
        rows=rows, sha256=hashlib.sha256("\n".join(split.image_sha256[rows].tolist()).encode()).hexdigest()
    )


def calibration_batches(data: FitData, chosen: CalibrationSet) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the network input [N, 3, H, W] of a calibration set in small batches."""
    for start in range(0, len(chosen.rows), CALIBRATION_BATCH):
        yield data.preprocessing.normalised(data.pixels[chosen.rows[start : start + CALIBRATION_BATCH]])


class _OneBatch:
    """Adapts one batch to the data-reader interface of ONNX Runtime's calibrators."""

    def __init__(self, name: str, batch: npt.NDArray[np.float32]) -> None:
        self._left = [{name: batch}]

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        """Return the batch, then None."""
        return self._left.pop() if self._left else None


def collect_ranges(
    graph: onnx.ModelProto,
    op_types: tuple[str, ...],
    method: str,
    batches: Iterator[npt.NDArray[np.float32]],
    advance: Callable[[int], None],
) -> Any:
    """Return the range of every activation that `op_types` read or write, as ONNX Runtime's `TensorsData`."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    entry = CALIBRATIONS[method]
    with temporary_folder() as folder:
        source = folder / "graph.onnx"
        onnx.save(graph, source)
        calibrator = create_calibrator(
            source,
            list(op_types),
            augmented_model_path=str(folder / "augmented.onnx"),
            calibrate_method=CalibrationMethod[entry.method],
            extra_options=dict(entry.options),
        )
        # Batch by batch: a histogram over all images at once would keep all their activations in memory.
        for batch in batches:
            with contextlib.redirect_stdout(io.StringIO()):
                calibrator.collect_data(_OneBatch(graph.graph.input[0].name, batch))
            advance(len(batch))
        # The histogram methods print to stdout, which is reserved for the command's record.
        with contextlib.redirect_stdout(io.StringIO()):
            return calibrator.compute_data()
