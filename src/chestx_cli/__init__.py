"""chestx: from a folder of chest X-rays to a small, fast, honestly evaluated classifier. Not a medical device."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

STAGES = ("demo", "split", "train", "sensitivity", "prune", "quantize", "evaluate", "compare", "benchmark", "report")

if TYPE_CHECKING:
    from chestx_cli.stages.benchmark import benchmark
    from chestx_cli.stages.compare import compare
    from chestx_cli.stages.demo import demo
    from chestx_cli.stages.evaluate import evaluate
    from chestx_cli.stages.prune import prune
    from chestx_cli.stages.quantize import quantize
    from chestx_cli.stages.report import report
    from chestx_cli.stages.sensitivity import sensitivity
    from chestx_cli.stages.split import split
    from chestx_cli.stages.train import train

__all__ = ["benchmark", "compare", "demo", "evaluate", "prune", "quantize", "report", "sensitivity", "split", "train"]


def __getattr__(name: str) -> Any:
    """Return a stage by name; its module is imported when it is first asked for."""
    if name in STAGES:
        return getattr(importlib.import_module(f"chestx_cli.stages.{name}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
