"""Cost of a network on this machine, measured without training it and cached in the study."""

from __future__ import annotations

import hashlib
import json
import statistics
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.compression.pruning.channel_removal import ShareError
from chestx_cli.compression.pruning.structured import Cutting, narrowed
from chestx_cli.compression.quantization.ranges import draw_calibration_set
from chestx_cli.compression.quantization.static import calibrated_graph
from chestx_cli.compression.quantization.target_cpus import ANY_CPU, TARGET_CPUS
from chestx_cli.compression.search import FP32, INT4, INT8, Cost
from chestx_cli.core.errors import IntegrityError
from chestx_cli.core.files import read_json, temporary_folder, write_atomic
from chestx_cli.core.machine import energy_counters, environment
from chestx_cli.core.progress import SilentReporter, ignored
from chestx_cli.inference.onnx_export import PERCENT, export_onnx
from chestx_cli.inference.runtimes import Model
from chestx_cli.inference.timing import Job, Round, roughness_of, time_jobs
from chestx_cli.networks.layers import count_macs
from chestx_cli.networks.weights.serialization import serialised

if TYPE_CHECKING:
    from torch import nn

    from chestx_cli.core.progress import Advance
    from chestx_cli.networks.training_data import FitData

# Few images are enough: calibration ranges affect values, not latency.
CALIBRATION_IMAGES = 8
ROUNDS, DURATION_S = 5, 0.5
# What was timed on a busy machine is timed once more; the less rough attempt counts.
ATTEMPTS = 2
# Of what is measured: since 2 INT8 files read grey, since 3 there is the size with weights in 4 bits, and since 4
# what was timed on a busy machine is not kept.
COSTS_VERSION = 4


@dataclass(frozen=True, kw_only=True)
class Prober:
    """Measures untrained networks: pruned copies of the parent's network, and students.

    `folder` caches the measurements, unless they are rough, by tensor shapes, machine and runtime. If it `renews`,
    those of earlier runs are replaced; `renewed` are the cache files that it has replaced.
    """

    network: nn.Module
    backbone: str
    n_classes: int
    data: FitData
    folder: Path
    threads: int
    runtime: str
    renews: bool = False
    renewed: set[Path] = field(default_factory=set)

    def nearest(self, percent: int, cutting: Cutting) -> int:
        """Return the removable percentage of the MACs nearest to `percent`."""
        try:
            self.narrowed(percent, cutting)
        except ShareError as error:
            return round(100 * error.nearest)
        return percent

    def narrowed(self, percent: int, cutting: Cutting) -> nn.Module:
        """Return a copy of the network without `percent` of its MACs; raises ShareError if it cannot be removed."""
        if not percent:
            return self.network
        whole = count_macs(self.network, self.data.preprocessing.image_size_px)
        kept = whole * (1 - percent / 100)
        return narrowed(self.network, self.data, cutting, {}, kept_macs=kept, whole_macs=whole)

    def cost_without(self, percent: int, cutting: Cutting, advance: Advance = ignored) -> dict[str, Cost]:
        """Return the cost of each kind after removing `percent` of the MACs, or the nearest removable share."""
        try:
            network = self.narrowed(percent, cutting)
        except ShareError as error:
            network = self.narrowed(round(100 * error.nearest), cutting)
        return self.cost(network, self.backbone, advance)

    def cost(self, network: nn.Module, backbone: str, advance: Advance = ignored) -> dict[str, Cost]:
        """Return the cost of each kind of a network's files, timed in separate processes.

        Weights in 4 bits are unpacked when the file is opened, so its latency is that of INT8. advance: called with
        each finished part of the work, in per cent. Raises IntegrityError for a damaged cache file.
        """
        side = self.data.preprocessing.image_size_px
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        setting = [self.threads, self.runtime, bool(energy_counters()), environment()]
        about = json.dumps([COSTS_VERSION, backbone, shapes, side, *setting], sort_keys=True)
        path = self.folder / f"cost-{hashlib.sha256(about.encode()).hexdigest()[:16]}.json"
        if path.exists() and (not self.renews or path in self.renewed):
            try:
                return {kind: Cost(**values) for kind, values in read_json(path).items()}
            except (OSError, ValueError, TypeError, AttributeError) as error:
                raise IntegrityError(f"{path} is damaged: {error}", "remove it; it is then measured again") from error
        costs = self._measured(network, backbone, advance)
        if not any(cost.is_rough for cost in costs.values()):
            write_atomic(path, json.dumps({kind: asdict(cost) for kind, cost in costs.items()}))
            self.renewed.add(path)
        return costs

    def _measured(self, network: nn.Module, backbone: str, advance: Advance) -> dict[str, Cost]:
        split, preprocessing = self.data.split, self.data.preprocessing
        few = draw_calibration_set(split, CALIBRATION_IMAGES, 0)
        fp32 = export_onnx(
            network, preprocessing.normalised(self.data.pixels[few.rows]), lambda percent: advance(percent / 2)
        )
        calibrated = calibrated_graph(
            fp32, self.data, few, method="minmax", numerics=TARGET_CPUS[ANY_CPU], reporter=SilentReporter()
        )
        int8 = calibrated.quantized()
        with temporary_folder() as folder:
            files = {kind: folder / f"{kind}.onnx" for kind in (FP32, INT8)}
            for path, content in zip(files.values(), (fp32, int8), strict=True):
                path.write_bytes(content)
            models = [
                Model(path=str(path), kind="onnx", backbone=backbone, n_classes=self.n_classes)
                for path in files.values()
            ]
            n_rounds = ROUNDS * len(models)
            timed = time_latency(
                models,
                preprocessing.image_size_px,
                self.threads,
                self.runtime,
                lambda: advance(PERCENT / 2 / n_rounds),
            )
        sizes = (len(serialised(network)), len(int8))
        costs = {kind: cost_of(rounds, size) for kind, rounds, size in zip(files, timed, sizes, strict=True)}
        packed = replace(calibrated, int4_weights=True).quantized()
        return costs | {INT4: replace(costs[INT8], size_mb=len(packed) / 1e6)}


def time_latency(
    models: list[Model], image_size_px: int, threads: int, runtime: str, advance: Advance = ignored
) -> list[list[Round]]:
    """Time ONNX models under a runtime at batch size 1, in interleaved rounds with one process per model.

    All are timed again while the times of one are rough, in at most ATTEMPTS attempts; returns the least rough one.
    advance: called after each model in each of ROUNDS rounds of the first attempt.
    """
    jobs = [
        Job(
            model=model,
            runtime=runtime,
            device="cpu",
            threads=threads,
            image_size_px=image_size_px,
            batch_sizes=(1,),
            duration_s=DURATION_S,
            seed=0,
        )
        for model in models
    ]
    attempts: list[list[list[Round]]] = []
    while len(attempts) < ATTEMPTS:
        attempts.append(time_jobs(jobs, ROUNDS, ignored if attempts else advance))
        if _roughest(attempts[-1]) <= 1:
            break
    return min(attempts, key=_roughest)


def _roughest(timed: list[list[Round]]) -> float:
    return max(roughness_of(rounds) for rounds in timed)


def cost_of(rounds: list[Round], size_bytes: int) -> Cost:
    """Return the cost of one image: the median over rounds of the median latency, and of the energy if measured."""
    joules = [timing.joules[1] for timing in rounds if 1 in timing.joules]
    return Cost(
        latency_ms=statistics.median(statistics.median(timing.seconds[1]) for timing in rounds) * 1000,
        size_mb=size_bytes / 1e6,
        energy_mj=statistics.median(joules) * 1000 if joules else None,
        is_rough=roughness_of(rounds) > 1,
    )
