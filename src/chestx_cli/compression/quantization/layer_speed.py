"""Layers that INT8 makes slower on this processor: measured, and left in FP32 if the whole file is then faster."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from chestx_cli.core.files import temporary_folder, write_atomic
from chestx_cli.core.machine import Waiting, available_threads, processor_name
from chestx_cli.evaluation.statistics.intervals import mean_ratio_interval
from chestx_cli.inference.runtimes import NATIVE, Model, profile_nodes
from chestx_cli.inference.speedups import SLOWER, speed_word, speedup_of
from chestx_cli.inference.timing import Job, is_busy, roughness_of, time_jobs
from chestx_cli.records.variant import INT8_EVERYWHERE, SOME_IN_FP32, LayerSpeeds, SlowerLayerRow

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx

    from chestx_cli.compression.quantization.onnx_graph import GraphLayer
    from chestx_cli.compression.quantization.static import CalibratedGraph
    from chestx_cli.core.progress import Reporter
    from chestx_cli.inference.timing import Round
    from chestx_cli.records.variant import VariantRecord

# The interval of a layer's speed-up is over rounds, each with a new session; a session's first calls do not count.
ROUNDS, CALLS, WARMUP_CALLS = 7, 15, 3
FILE_DURATION_S, SEARCH_ROUNDS = 0.5, 3
FILES = ("fp32", "int8")
# Prefixes and suffixes that the runtime adds to node and value names when it fuses nodes or changes layouts.
_ADDED = re.compile(r"^fused |(_nchwc)?(_token_\d+)?$")


@dataclass(frozen=True, kw_only=True)
class LayerTimes:
    """Seconds per round that a layer takes in each file, including the nodes that run before the next layer."""

    fp32_s: tuple[float, ...]
    int8_s: tuple[float, ...]


def choose_by_speed(calibrated: CalibratedGraph, parent: VariantRecord, reporter: Reporter) -> LayerSpeeds:
    """Time every layer in FP32 and INT8 on this processor, and choose which of the slower ones stay in FP32.

    A layer counts as slower by the rule for variants: beyond the tolerance, with an interval over rounds that excludes
    equal times. A layer in FP32 needs conversions that its own time does not include. Therefore files in which the 1,
    2, 4, ... layers that lose most time are in FP32 are timed in turns, and the fastest is timed again against the file
    with all layers in INT8. It is kept only if the interval shows that it is faster. Times are of single images with
    all threads. Where the machine was busy, all layers are in INT8.
    """
    import numpy as np

    threads, side_px = available_threads(), parent.preprocessing.image_size_px
    image = np.random.default_rng(0).standard_normal((1, 3, side_px, side_px), dtype=np.float32)
    everywhere = calibrated.quantized()
    names, waiting = names_of_layers(calibrated.graph, calibrated.layers), Waiting()
    with reporter.progress("Timing each layer in FP32 and INT8", ROUNDS * len(FILES)) as advance:
        files = {"fp32": calibrated.graph.SerializeToString(), "int8": everywhere}
        times = time_layers(files, names, image, threads, waiting, lambda: advance(1))
    slower = slower_layers(times)
    kept, tried, speedup, interval, is_rough = INT8_EVERYWHERE, 0, None, None, is_busy(waiting.share)
    # A file with all layers in FP32 would be no INT8 file.
    counts = prefixes(min(len(slower), len(calibrated.layers) - 1))
    if counts:
        mixed = {count: calibrated.quantized(excluded=[row.layer for row in slower[:count]]) for count in counts}
        timed = len(counts) * SEARCH_ROUNDS if len(counts) > 1 else 0
        with reporter.progress("Timing files with some layers in FP32", timed + 2 * ROUNDS) as advance:
            tried, search_is_rough = fastest_of(mixed, parent, threads, lambda: advance(1))
            reference, rounds = time_files((everywhere, mixed[tried]), parent, threads, ROUNDS, lambda: advance(1))
        speedup, interval = speedup_of(reference, rounds)
        is_rough = is_rough or search_is_rough or max(roughness_of(reference), roughness_of(rounds)) > 1
        if interval is not None and interval[0] > 1 and not is_rough:
            kept = SOME_IN_FP32
            slower = tuple(replace(row, in_fp32=at < tried) for at, row in enumerate(slower))
    return LayerSpeeds(
        processor=processor_name(),
        threads=threads,
        rounds=ROUNDS,
        timed_layers=len(times),
        kept=kept,
        tried_layers=tried,
        speedup=speedup,
        speedup_interval=interval,
        is_rough=is_rough,
        rows=slower,
    )


def prefixes(n: int) -> list[int]:
    """Return 1, 2, 4, ... and n; nothing for 0."""
    return [*(2**power for power in range(n.bit_length()) if 2**power < n), n] if n > 0 else []


def fastest_of(
    files: Mapping[int, bytes], parent: VariantRecord, threads: int, advance: Callable[[], None]
) -> tuple[int, bool]:
    """Return the key of the file with the lowest median latency, and whether the times are of a busy machine.

    A single one is not timed.
    """
    if len(files) == 1:
        return next(iter(files)), False
    timed = time_files(tuple(files.values()), parent, threads, SEARCH_ROUNDS, advance)
    medians_s = [statistics.median(statistics.median(one.seconds[1]) for one in rounds) for rounds in timed]
    return min(zip(medians_s, files, strict=True))[1], any(roughness_of(rounds) > 1 for rounds in timed)


def names_of_layers(graph: onnx.ModelProto, layers: Mapping[str, GraphLayer]) -> dict[str, str]:
    """Return a mapping to each layer from the names that a runtime may give its node, alone or fused."""
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
        # An addition has two inputs and belongs to no single layer, although the runtime names it after one of them.
        if len(after) == 1 and after[0].name not in first and (len(after[0].input) == 1 or after[0].op_type == "Clip"):
            names |= dict.fromkeys((after[0].name, after[0].output[0]), layer.name)
    return names


def time_layers(
    files: Mapping[str, bytes],
    names: Mapping[str, str],
    image: npt.NDArray[np.float32],
    threads: int,
    waiting: Waiting,
    advance: Callable[[], None],
) -> dict[str, LayerTimes]:
    """Return the times of each layer that is found in both files, which run in turns.

    files: the FP32 and the INT8 file. names: see `names_of_layers`. waiting: measures the calls. advance: called after
    each file in each round.
    """
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in FILES}
    for number in range(ROUNDS):
        # Every second round in reverse order, so that drift of the machine affects both alike.
        for name in FILES if number % 2 == 0 else reversed(FILES):
            profiled = profile_nodes(files[name], image, threads, WARMUP_CALLS + CALLS, waiting)
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

    So conversions and activations that the runtime could not fuse count as time of their layer.
    """
    seconds: dict[str, float] = {}
    current = None
    for node, taken_s in nodes:
        current = names.get(_ADDED.sub("", node), current)
        if current is not None:
            seconds[current] = seconds.get(current, 0.0) + taken_s
    return seconds


def slower_layers(times: Mapping[str, LayerTimes]) -> tuple[SlowerLayerRow, ...]:
    """Return the layers that are slower in INT8 than in FP32, the largest loss of time first."""
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
    files: Sequence[bytes], parent: VariantRecord, threads: int, rounds: int, advance: Callable[[], None]
) -> list[list[Round]]:
    """Return the rounds of each file, timed in turns with one image, each in a new process."""
    with temporary_folder() as folder:
        jobs = []
        for number, content in enumerate(files):
            path = folder / f"{number}.onnx"
            write_atomic(path, content)
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
        return time_jobs(jobs, rounds, advance)
