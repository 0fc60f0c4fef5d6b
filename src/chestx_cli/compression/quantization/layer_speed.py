"""Layers that INT8 makes slower on this processor: measured, and left in FP32 if the whole file is then faster."""

from __future__ import annotations

import re
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.core.machine import available_threads, processor_name
from chestx_cli.evaluation.statistics.intervals import mean_ratio_interval
from chestx_cli.inference.runtimes import NATIVE, Model, profile_nodes
from chestx_cli.inference.speedups import SLOWER, speed_word, speedup_of
from chestx_cli.inference.timing import Job, time_jobs
from chestx_cli.records.variant import INT8_EVERYWHERE, SLOWER_IN_FP32, LayerSpeeds, SlowerLayerRow

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx

    from chestx_cli.compression.quantization.onnx_graph import GraphLayer
    from chestx_cli.compression.quantization.static import CalibratedGraph
    from chestx_cli.core.progress import Reporter
    from chestx_cli.records.variant import VariantRecord

# An interval of a layer's ratio comes from rounds, each with a new session; the first calls of a session are left out.
ROUNDS, CALLS, WARMUP_CALLS = 7, 15, 3
FILE_DURATION_S = 0.5
FILES = ("fp32", "int8")
# What the runtime adds to the names of a graph's nodes and values when it fuses nodes and changes layouts.
_ADDED = re.compile(r"^fused |(_nchwc)?(_token_\d+)?$")


@dataclass(frozen=True, kw_only=True)
class LayerTimes:
    """Seconds that a layer takes in both files, one per round; what follows it up to the next layer is part of it."""

    fp32_s: tuple[float, ...]
    int8_s: tuple[float, ...]


def choose_by_speed(calibrated: CalibratedGraph, parent: VariantRecord, reporter: Reporter) -> LayerSpeeds:
    """Time all layers in FP32 and INT8 on this processor, and the file in which the slower ones stay in FP32.

    A layer counts as slower by the rule for variants: beyond the tolerance, with an interval over rounds that excludes
    equal times. They stay in FP32 only if the whole file is then shown to be faster than with all layers in INT8, since
    each such layer needs two conversions that its own time does not include. One image at a time, all threads.
    """
    import numpy as np

    threads, side_px = available_threads(), parent.preprocessing.image_size_px
    image = np.random.default_rng(0).standard_normal((1, 3, side_px, side_px), dtype=np.float32)
    everywhere = calibrated.quantized()
    fp32 = calibrated.graph.SerializeToString()
    names = names_of_layers(calibrated.graph, calibrated.layers)
    with reporter.progress("Timing each layer in FP32 and INT8", ROUNDS * len(FILES)) as advance:
        times = time_layers({"fp32": fp32, "int8": everywhere}, names, image, threads, lambda: advance(1))
    slower = slower_layers(times)
    kept, speedup, interval = INT8_EVERYWHERE, None, None
    if slower:
        mixed = calibrated.quantized(excluded=[row.layer for row in slower])
        with reporter.progress("Timing the file with these layers in FP32", ROUNDS * 2) as advance:
            speedup, interval = time_files(everywhere, mixed, parent, threads, lambda: advance(1))
        if interval is not None and interval[0] > 1:
            kept = SLOWER_IN_FP32
    return LayerSpeeds(
        processor=processor_name(),
        threads=threads,
        rounds=ROUNDS,
        timed_layers=len(times),
        kept=kept,
        speedup=speedup,
        speedup_interval=interval,
        rows=slower,
    )


def names_of_layers(graph: onnx.ModelProto, layers: Mapping[str, GraphLayer]) -> dict[str, str]:
    """Return the layer of each name that a runtime may give the node of a layer, alone or with its activation."""
    nodes = {node.name: node for node in graph.graph.node}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes.values():
        for value in node.input:
            readers.setdefault(value, []).append(node)
    first = {layer.nodes[0] for layer in layers.values()}
    names: dict[str, str] = {}
    for layer in layers.values():
        node = nodes[layer.nodes[0]]
        names |= dict.fromkeys((node.name, node.output[0]), layer.name)
        after = readers.get(node.output[0], [])
        # A sum is of two layers, and the runtime names it after either.
        if len(after) == 1 and after[0].name not in first and (len(after[0].input) == 1 or after[0].op_type == "Clip"):
            names |= dict.fromkeys((after[0].name, after[0].output[0]), layer.name)
    return names


def time_layers(
    files: Mapping[str, bytes],
    names: Mapping[str, str],
    image: npt.NDArray[np.float32],
    threads: int,
    advance: Callable[[], None],
) -> dict[str, LayerTimes]:
    """Return the times of the layers that are found in both files, in turns of both, by layer.

    files: the FP32 and the INT8 file. names: see `names_of_layers`. advance: called after each file in each round.
    """
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in FILES}
    for number in range(ROUNDS):
        # Every second round in reverse order, so that drift of the machine affects both alike.
        for name in FILES if number % 2 == 0 else reversed(FILES):
            profiled = profile_nodes(files[name], image, threads, WARMUP_CALLS + CALLS)
            medians = [(node, statistics.median(calls[WARMUP_CALLS:])) for node, calls in profiled]
            seconds[name].append(by_layer(medians, names))
            advance()
    every = [own for rounds in seconds.values() for own in rounds]
    return {
        layer: LayerTimes(
            fp32_s=tuple(own[layer] for own in seconds["fp32"]), int8_s=tuple(own[layer] for own in seconds["int8"])
        )
        for layer in dict.fromkeys(names.values())
        if all(own.get(layer) for own in every)
    }


def by_layer(nodes: Sequence[tuple[str, float]], names: Mapping[str, str]) -> dict[str, float]:
    """Return the seconds of each layer: its own node and those executed after it up to the next layer.

    Conversions and activations that the runtime could not fuse are the price of computing the layer as it is computed.
    """
    seconds: dict[str, float] = {}
    current = None
    for node, taken_s in nodes:
        current = names.get(_ADDED.sub("", node), current)
        if current is not None:
            seconds[current] = seconds.get(current, 0.0) + taken_s
    return seconds


def slower_layers(times: Mapping[str, LayerTimes]) -> tuple[SlowerLayerRow, ...]:
    """Return the layers that are slower in INT8 than in FP32, those that lose most time first."""
    rows = []
    for layer, own in times.items():
        speedups = [fp32_s / int8_s for fp32_s, int8_s in zip(own.fp32_s, own.int8_s, strict=True)]
        speedup, interval = statistics.median(speedups), mean_ratio_interval(speedups)
        if interval is not None and speed_word(speedup, interval) == SLOWER:
            rows.append(
                SlowerLayerRow(
                    layer=layer,
                    fp32_us=1e6 * statistics.median(own.fp32_s),
                    int8_us=1e6 * statistics.median(own.int8_s),
                    times_slower=1 / speedup,
                    times_slower_interval=(1 / interval[1], 1 / interval[0]),
                )
            )
    return tuple(sorted(rows, key=lambda row: row.fp32_us - row.int8_us))


def time_files(
    everywhere: bytes, mixed: bytes, parent: VariantRecord, threads: int, advance: Callable[[], None]
) -> tuple[float, tuple[float, float] | None]:
    """Return how many times as fast `mixed` is as `everywhere`, with the 95 % interval over rounds."""
    with tempfile.TemporaryDirectory(prefix="chestx-") as folder:
        jobs = []
        for name, content in (("everywhere", everywhere), ("mixed", mixed)):
            path = Path(folder) / f"{name}.onnx"
            path.write_bytes(content)
            jobs.append(
                Job(
                    model=Model(path=str(path), kind="onnx", backbone=parent.backbone, n_classes=len(parent.classes)),
                    runtime=NATIVE["onnx"],
                    device="cpu",
                    threads=threads,
                    image_size_px=parent.preprocessing.image_size_px,
                    batch_sizes=(1,),
                    duration_s=FILE_DURATION_S,
                    seed=0,
                )
            )
        reference, variant = time_jobs(jobs, ROUNDS, advance)
    return speedup_of(reference, variant)
