"""Counts the multiply-accumulate operations (MACs) of a study's commands; prints them as JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chestx_cli.networks.layers import prunable_layers
from chestx_cli.networks.weights.serialization import load_network
from chestx_cli.records.variant import BASELINE
from chestx_cli.store.directory import Study

if TYPE_CHECKING:
    import torch


def main() -> None:
    """Count the MACs per image of a forward pass, and of a sweep that recomputes only a pruned layer and later ones."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, required=True)
    options = parser.parse_args()
    study = Study(options.study)
    record = study.read_variant(BASELINE)
    network = load_network(study, record)
    executed: list[int] = []

    def count(layer: Any, _inputs: Any, output: torch.Tensor) -> None:
        per_output = layer.weight[0].numel()
        executed.append(per_output * output[0].numel())

    for layer in prunable_layers(network).values():
        layer.register_forward_hook(count)
    side = record.preprocessing.image_size_px
    with torch.inference_mode():
        network(torch.zeros(1, 3, side, side))
    # A layer is recomputed when it is pruned itself, and when an earlier layer is pruned.
    sweep = sum(position * macs for position, macs in enumerate(executed, start=1))
    split = study.read_split()
    images = {part: len(split.indices(part)) for part in ("train", "val", "test")}
    print(json.dumps({"macs": sum(executed), "sweep_macs": sweep, "images": images}))


if __name__ == "__main__":
    main()
