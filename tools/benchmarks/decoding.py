"""Counts how many image files the commands open once the pixels are cached; prints the counts as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chestx_cli


def main() -> None:
    """Run the commands that need pixels on a study with a cache, and count the image files that they open."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, required=True)
    parser.add_argument("--layers", required=True)
    parser.add_argument("train", nargs="*", help="options of the training, as name=value")
    options = parser.parse_args()
    root = json.loads((options.study / "split.json").read_text(encoding="utf-8"))["source"]
    opened: list[str] = []

    def listen(event: str, arguments: tuple[Any, ...]) -> None:
        # Every decoder has to open the file first.
        if event == "open" and str(arguments[0]).startswith(root):
            opened.append(str(arguments[0]))

    sys.addaudithook(listen)
    values: dict[str, Any] = dict(word.split("=", 1) for word in options.train)
    values["image_size"] = int(values["image_size"])
    layers = tuple(options.layers.split(","))
    study = options.study
    calls: dict[str, Callable[[], object]] = {
        "train": lambda: chestx_cli.train(study=study, name="decode-check", epochs=2, **values),
        "sensitivity": lambda: chestx_cli.sensitivity(study=study, layers=layers),
        "prune": lambda: chestx_cli.prune(
            study=study, method="iterative", steps=1, finetune_epochs=1, name="decode-check-pruned"
        ),
        "quantize": lambda: chestx_cli.quantize(study=study, name="decode-check-int8"),
        "evaluate": lambda: chestx_cli.evaluate(variants=("decode-check",), study=study),
    }
    counts = {}
    for name, call in calls.items():
        opened.clear()
        call()
        counts[name] = len(opened)
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
