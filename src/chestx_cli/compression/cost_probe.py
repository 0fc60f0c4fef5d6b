"""Cost of a pruned network on this machine, measured without training it and cached in the study."""

from __future__ import annotations

import hashlib
import json
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.compression.pruning.channel_removal import ShareError
from chestx_cli.compression.pruning.structured import Cutting, narrowed
from chestx_cli.compression.quantization.ranges import draw_calibration_set
from chestx_cli.compression.quantization.static import calibrated_graph
from chestx_cli.compression.quantization.target_cpus import ANY_CPU, TARGET_CPUS
from chestx_cli.compression.search import FP32, INT8, Cost
from chestx_cli.core.errors import IntegrityError
from chestx_cli.core.files import read_json, write_atomic
from chestx_cli.core.machine import environment
from chestx_cli.core.progress import SilentReporter, ignored
from chestx_cli.inference.onnx_export import PERCENT, export_onnx
from chestx_cli.inference.runtimes import NATIVE, Model
from chestx_cli.inference.timing import Job, Round, time_jobs
from chestx_cli.networks.layers import count_macs
from chestx_cli.networks.weights.serialization import serialised

if TYPE_CHECKING:
    from torch import nn

    from chestx_cli.core.progress import Advance
    from chestx_cli.networks.training_data import FitData

# Few images are enough: calibration ranges affect values, not latency.
CALIBRATION_IMAGES = 8
ROUNDS, DURATION_S = 5, 0.5


@dataclass(frozen=True, kw_only=True)
class Prober:
    """Measures pruned copies of a network; `folder` caches the measurements by tensor shapes and machine."""

    network: nn.Module
    backbone: str
    n_classes: int
    data: FitData
    folder: Path
    threads: int

    def nearest(self, percent: int, cutting: Cutting) -> int:
        """Return the removable percentage of the MACs nearest to `percent`."""
        try:
            self._narrowed(percent, cutting)
        except ShareError as error:
            return round(100 * error.nearest)
        return percent

    def _narrowed(self, percent: int, cutting: Cutting) -> nn.Module:
        if not percent:
            return self.network
        whole = count_macs(self.network, self.data.preprocessing.image_size_px)
        kept = whole * (1 - percent / 100)
        return narrowed(self.network, self.data, cutting, {}, kept_macs=kept, whole_macs=whole)

    def cost(self, percent: int, cutting: Cutting, advance: Advance = ignored) -> dict[str, Cost]:
        """Return the FP32 and INT8 cost after removing `percent` of the MACs, timed in separate processes.

        If that share cannot be removed, the nearest removable share is used. advance: called with hundredths of the
        work, PERCENT in total. Raises IntegrityError for a damaged cache file.
        """
        try:
            network = self._narrowed(percent, cutting)
        except ShareError as error:
            network = self._narrowed(round(100 * error.nearest), cutting)
        side = self.data.preprocessing.image_size_px
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        about = json.dumps([shapes, side, self.threads, environment()], sort_keys=True)
        path = self.folder / f"cost-{hashlib.sha256(about.encode()).hexdigest()[:16]}.json"
        if path.exists():
            try:
                return {kind: Cost(**values) for kind, values in read_json(path).items()}
            except (OSError, ValueError, TypeError, AttributeError) as error:
                raise IntegrityError(f"{path} is damaged: {error}", "remove it; it is then measured again") from error
        costs = self._measured(network, advance)
        write_atomic(path, json.dumps({kind: asdict(cost) for kind, cost in costs.items()}))
        return costs

    def _measured(self, network: nn.Module, advance: Advance) -> dict[str, Cost]:
        split, preprocessing = self.data.split, self.data.preprocessing
        few = draw_calibration_set(split, CALIBRATION_IMAGES, 0)
        fp32 = export_onnx(
            network, preprocessing.normalised(self.data.pixels[few.rows]), lambda percent: advance(percent / 2)
        )
        calibrated = calibrated_graph(
            fp32, self.data, few, method="minmax", numerics=TARGET_CPUS[ANY_CPU], reporter=SilentReporter()
        )
        int8 = calibrated.quantized()
        with tempfile.TemporaryDirectory(prefix="chestx-") as folder:
            files = {kind: Path(folder) / f"{kind}.onnx" for kind in (FP32, INT8)}
            for path, content in zip(files.values(), (fp32, int8), strict=True):
                path.write_bytes(content)
            models = [
                Model(path=str(path), kind="onnx", backbone=self.backbone, n_classes=self.n_classes)
                for path in files.values()
            ]
            n_rounds = ROUNDS * len(models)
            timed = time_latency(
                models, preprocessing.image_size_px, self.threads, lambda: advance(PERCENT / 2 / n_rounds)
            )
        sizes = (len(serialised(network)), len(int8))
        return {
            kind: Cost(latency_ms=median_ms(rounds), size_mb=size / 1e6)
            for kind, rounds, size in zip(files, timed, sizes, strict=True)
        }


def time_latency(
    models: list[Model], image_size_px: int, threads: int, advance: Advance = ignored
) -> list[list[Round]]:
    """Time ONNX models under ONNX Runtime at batch size 1, in interleaved rounds with one process per model.

    advance: called after each model in each of ROUNDS rounds.
    """
    jobs = [
        Job(
            model=model,
            runtime=NATIVE["onnx"],
            device="cpu",
            threads=threads,
            image_size_px=image_size_px,
            batch_sizes=(1,),
            duration_s=DURATION_S,
            seed=0,
        )
        for model in models
    ]
    return time_jobs(jobs, ROUNDS, advance)


def median_ms(rounds: list[Round]) -> float:
    """Return the median over rounds of the median latency of one image in ms."""
    return statistics.median(statistics.median(timing.seconds[1]) for timing in rounds) * 1000
