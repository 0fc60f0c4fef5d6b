"""Fits of a plan: which networks a cell trains."""

from __future__ import annotations

from chestx_cli.cells.fits import PlannedFit, fits_of
from chestx_cli.cells.plan import plan_of
from chestx_cli.commands.study import STAGES


def test_every_step_that_trains_is_a_fit_of_its_own_network_and_teacher() -> None:
    steps = [
        {"prune": "structured", "distill": True},
        {"distill": "resnet18", "weights": "none", "batch-size": 8, "ema": 0.9, "width": 0.5},
        {"prune": "structured", "distill": True},
        {"quantize": "qat", "batch-size": 4},
        {"quantize": "static"},
    ]
    document = {"data": "d", "train": {"precision": "bf16"}, "variants": [{"name": "a", "steps": steps}]}

    def fit(backbone: str, batch_size: int, precision: str, **more: object) -> PlannedFit:
        known = {"backbone": backbone, "batch_size": batch_size, "precision": precision, "device": "auto"}
        return PlannedFit(**{"is_averaged": False, **known, **more})  # type: ignore[arg-type]  # a test's short form

    assert fits_of(plan_of(document, STAGES, {"accuracy": 0.02}), STAGES) == (
        fit("resnet50", 32, "bf16", weights="imagenet"),
        fit("resnet50", 32, "auto", teacher="resnet50"),
        fit("resnet18", 8, "auto", is_averaged=True, teacher="resnet50", weights="none", width=0.5),
        fit("resnet18", 32, "auto", teacher="resnet18", width=0.5, teacher_width=0.5),
        fit("resnet18", 4, "fp32", width=0.5),
    )
