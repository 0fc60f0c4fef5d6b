"""Fuzzing: mutated files are passed to their readers in a separate process, which may crash."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.core.errors import ChestxError
from tools.reliability import mutations
from tools.reliability.mutations import Mutation

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CPU_LIMIT_S = 2.0
BASELINE = "baseline"


@dataclass(frozen=True, kw_only=True)
class Target:
    """Files of one kind: their mutation, the prepared files, and the reader."""

    mutate: Mutation
    seeds: tuple[str, ...]
    read: Callable[[Path, bytes, int], None]


def _read_image(place: Path, content: bytes, index: int) -> None:
    from chestx_cli.data.images.decoding import at_network_size, decode_grey
    from chestx_cli.data.scanning import thumbnail
    from chestx_cli.records.preprocessing import Preprocessing

    path = place / f"{index % 2}.png"
    path.write_bytes(content)
    grey, _ = decode_grey(path)
    at_network_size(grey, Preprocessing(image_size_px=32))
    thumbnail(grey)


def _read_manifest(place: Path, content: bytes, index: int) -> None:
    """Read a user's manifest and a study's own in turn."""
    from chestx_cli.data.sources.listing import find_images
    from chestx_cli.data.sources.patients import group_by_name
    from chestx_cli.store.split import parse_manifest

    if index % 2:
        parse_manifest(content, root=place, classes=("NORMAL", "PNEUMONIA"), positive="PNEUMONIA")
        return
    path = place / "manifest.csv"
    path.write_bytes(content)
    group_by_name(find_images(path, leave_out=place / "study").paths)


def _read_variant(place: Path, content: bytes, _index: int) -> None:
    from chestx_cli.inference.prediction import open_model
    from chestx_cli.store.directory import Study

    study = Study(place / "study")
    (study.variant(BASELINE) / "variant.json").write_bytes(content)
    record = study.read_usable_variant(BASELINE, study.read_split())
    open_model(study, record, 1)(_no_image())


def _read_safetensors(place: Path, content: bytes, index: int) -> None:
    """Read a variant's file and initial weights in turn."""
    from chestx_cli.networks.backbones import BACKBONES
    from chestx_cli.networks.weights.pretrained import load_weights
    from chestx_cli.networks.weights.serialization import load_model_file

    path = place / "model.safetensors"
    path.write_bytes(content)
    if index % 2:
        load_weights(BACKBONES["tiny"].build(), path, "fc")
        return
    load_model_file(path, "tiny", 2)


def _read_onnx(place: Path, content: bytes, _index: int) -> None:
    from chestx_cli.inference.runtimes import RUNTIMES, Model

    path = place / "model.onnx"
    path.write_bytes(content)
    model = Model(path=str(path), kind="onnx", backbone="tiny", n_classes=2)
    RUNTIMES["onnxruntime"].open(model, 1, "cpu")(_no_image())


def _no_image() -> npt.NDArray[np.float32]:
    import numpy as np

    return np.zeros((1, 3, 32, 32), dtype=np.float32)


TARGETS: dict[str, Target] = {
    "PNG": Target(mutate=mutations.mutate_png, seeds=("grey.png", "palette.png", "wide.png"), read=_read_image),
    "JPEG": Target(
        mutate=mutations.mutate_jpeg, seeds=("grey.jpeg", "colour.jpeg", "progressive.jpeg"), read=_read_image
    ),
    "manifest CSV": Target(mutate=mutations.mutate_csv, seeds=("user.csv", "split.csv"), read=_read_manifest),
    "variant.json": Target(mutate=mutations.mutate_json, seeds=("variant.json",), read=_read_variant),
    "safetensors header": Target(mutate=mutations.mutate_header, seeds=("model.safetensors",), read=_read_safetensors),
    "ONNX": Target(mutate=mutations.mutate_bytes, seeds=("fp32.onnx", "int8.onnx"), read=_read_onnx),
}


def fuzz(name: str, seeds: str, place: str, first: str, last: str, report: str) -> None:
    """Read the mutated files `first` to `last` - 1 of a target; one line of `report` describes each.

    A line has the number, processor time in seconds, whether the file was refused, and any fault. The number is
    written before the file is read, so that a file that kills the process can be identified.
    """
    target = TARGETS[name]
    contents = [(Path(seeds) / seed).read_bytes() for seed in target.seeds]
    with Path(report).open("a", encoding="utf-8") as lines:
        for index in range(int(first), int(last)):
            rng = random.Random(f"{name} {index}")  # noqa: S311 - to be drawn again, not to be secret
            content = target.mutate(contents[index % len(contents)], rng)
            lines.write(f"{index} ")
            lines.flush()
            started_s = time.process_time()
            refused, wrong = False, ""
            try:
                target.read(Path(place), content, index)
            except ChestxError:
                refused = True
            except Exception as error:
                wrong = f"{type(error).__name__}: {str(error)[:200]}"
            lines.write(json.dumps([time.process_time() - started_s, refused, wrong]) + "\n")


def export_baseline(root: str, to: str) -> None:
    """Write a study's baseline as an FP32 ONNX file."""
    import numpy as np

    from chestx_cli.inference.onnx_export import export_onnx
    from chestx_cli.networks.weights.serialization import load_network
    from chestx_cli.store.directory import Study

    study = Study(Path(root))
    network = load_network(study, study.read_usable_variant(BASELINE, study.read_split()))
    Path(to).write_bytes(export_onnx(network, np.repeat(_no_image(), 2, axis=0)))
