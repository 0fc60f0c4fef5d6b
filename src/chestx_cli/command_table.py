"""Every command and its summary. Generated from the files of `commands/` by `make docs`; do not edit."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    "prune",
    "quantize",
    "report",
    "sensitivity",
    "split",
    "train",
]

SUMMARIES = {
    "demo": "Make synthetic radiographs and run a whole study on them, each command as you would type it.",
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
