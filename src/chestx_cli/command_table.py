"""Every command and its summary. Generated from the files of `commands/` by `make docs`; do not edit."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chestx_cli.commands.benchmark import benchmark
    from chestx_cli.commands.compare import compare
    from chestx_cli.commands.compress import compress
    from chestx_cli.commands.config import config
    from chestx_cli.commands.demo import demo
    from chestx_cli.commands.distill import distill
    from chestx_cli.commands.doctor import doctor
    from chestx_cli.commands.evaluate import evaluate
    from chestx_cli.commands.export import export
    from chestx_cli.commands.predict import predict
    from chestx_cli.commands.prune import prune
    from chestx_cli.commands.quantize import quantize
    from chestx_cli.commands.report import report
    from chestx_cli.commands.sensitivity import sensitivity
    from chestx_cli.commands.split import split
    from chestx_cli.commands.status import status
    from chestx_cli.commands.study import study
    from chestx_cli.commands.train import train

__all__ = [
    "benchmark",
    "compare",
    "compress",
    "config",
    "demo",
    "distill",
    "doctor",
    "evaluate",
    "export",
    "predict",
    "prune",
    "quantize",
    "report",
    "sensitivity",
    "split",
    "status",
    "study",
    "train",
]

SUMMARIES = {
    "doctor": "Check this machine and installation: what is missing?",
    "demo": "Run a whole study on synthetic radiographs.",
    "split": "Audit the images, then split them by patient.",
    "train": "Train the baseline; split the data first if need be.",
    "sensitivity": "Measure what pruning or quantizing each layer alone costs.",
    "prune": "Zero weights or remove channels of a variant.",
    "distill": "Train another, smaller network with a variant as teacher.",
    "quantize": "Quantize a variant to an ONNX file of fewer bits per weight.",
    "compress": "Find the least compression that meets your limits here.",
    "study": "Train, compress and judge over folds and seeds: one decision.",
    "evaluate": "Judge every variant on the test images: which to ship?",
    "compare": "Compare two variants in full on the same images.",
    "benchmark": "Time every variant: latency, throughput, memory, size.",
    "export": "Bundle a variant for a device: model, labels, one script.",
    "predict": "Predict new images: research only, no diagnosis.",
    "report": "Write the study as one HTML page and as Markdown.",
    "status": "Show what a study holds, what is outdated, and the decision.",
    "config": "Show the value of every option, and where it is set.",
}
