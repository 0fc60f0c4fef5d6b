"""chestx: from a folder of chest X-rays to a small, fast, honestly evaluated classifier. Not a medical device."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# ONNX Runtime reports its own import and keeps an identifier of the machine, on Linux too, unless it finds one of these
# names by then: which one depends on its version. Child processes inherit them.
os.environ.update(ORT_DISABLE_TELEMETRY="1", ORT_TELEMETRY_DISABLED="1")

# Every command and its summary, the first sentence of its docstring: `chestx --help` imports none of them.
STAGES = {
    "demo": "Make synthetic radiographs and run the whole study on them, each command as you would type it.",
    "split": "Audit the images, then split them by patient, stratified and seeded.",
    "train": "Train the baseline; splits the data first if there is no split yet.",
    "sensitivity": "Measure how much each layer's pruning or quantization alone costs on the validation split.",
    "prune": "Prune a variant: one-shot and iterative make zeros, structured and guided remove channels.",
    "quantize": "Quantize a torch variant to an INT8 ONNX file that ONNX Runtime runs.",
    "compress": "Search the least compression that meets limits of latency, size and accuracy on this machine.",
    "evaluate": "Evaluate variants on the test split, with intervals, calibration and paired verdicts.",
    "compare": "Compare two evaluated variants on the same images: differences, exact tests, a verdict.",
    "benchmark": "Measure latency, throughput, memory and size of variants under each runtime.",
    "export": "Export a variant as a bundle for a device: its ONNX file, labels and one small script.",
    "report": "Write the study's tables, figures and conclusions as one HTML page and as Markdown.",
}

# What Python has besides the commands, and the module that it is in.
OTHERS = {"progress": "chestx_cli.cli.notebook"}

if TYPE_CHECKING:
    from chestx_cli.cli.notebook import progress
    from chestx_cli.commands.benchmark import benchmark
    from chestx_cli.commands.compare import compare
    from chestx_cli.commands.compress import compress
    from chestx_cli.commands.demo import demo
    from chestx_cli.commands.evaluate import evaluate
    from chestx_cli.commands.export import export
    from chestx_cli.commands.prune import prune
    from chestx_cli.commands.quantize import quantize
    from chestx_cli.commands.report import report
    from chestx_cli.commands.sensitivity import sensitivity
    from chestx_cli.commands.split import split
    from chestx_cli.commands.train import train

__all__ = [
    "benchmark",
    "compare",
    "compress",
    "demo",
    "evaluate",
    "export",
    "progress",
    "prune",
    "quantize",
    "report",
    "sensitivity",
    "split",
    "train",
]


def version_line() -> str:
    """Return what `chestx --version` prints."""
    return f"chestx {__version__}\n"


def __dir__() -> list[str]:
    """Return the commands, for `dir()` and the completion of names; none is imported for it."""
    return [*__all__, "__version__"]


if not TYPE_CHECKING:
    # Type checkers know the commands by the imports above: any other attribute is a mistake.
    def __getattr__(name: str) -> Any:
        """Return a command by name; its module is imported when it is first used."""
        if name in __all__:
            return getattr(importlib.import_module(OTHERS.get(name, f"chestx_cli.commands.{name}")), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])
