"""The fits of a plan: which networks every cell trains, and what decides their memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from chestx_cli.cells.plan import DISTILL, Plan, Stages, Step, methods_in
from chestx_cli.core.record import Options


@dataclass(frozen=True, kw_only=True)
class PlannedFit:
    """A fit in every cell.

    `teacher` is the backbone of the network that it learns from, None without one. `weights` are the initial ones of a
    new network, None for one that is in the study already. `width` and `teacher_width` are the shares of their channels
    that both backbones began with.
    """

    backbone: str
    batch_size: int
    precision: str
    device: str
    is_averaged: bool
    teacher: str | None = None
    weights: str | None = None
    width: float = 1.0
    teacher_width: float = 1.0


def fits_of(plan: Plan, stages: Stages) -> tuple[PlannedFit, ...]:
    """Return the different fits of a plan, the baseline's first."""
    return tuple(dict.fromkeys(_fits(plan, stages)))


def _fits(plan: Plan, stages: Stages) -> Iterator[PlannedFit]:
    trained = _complete(plan.options["train"], stages, "train")
    yield _fit(trained, trained["backbone"], weights=trained["weights"])
    for variant in plan.variants:
        backbone, width = trained["backbone"], 1.0
        for step in variant.steps:
            if step.command == DISTILL:
                options = _complete(step.options, stages, DISTILL)
                student = _fit(options, step.method, teacher=backbone, weights=options["weights"])
                yield replace(student, width=options["width"], teacher_width=width)
                backbone, width = step.method, options["width"]
                continue
            options = _of_method(step, stages)
            if options.get("finetune_epochs", options.get("epochs")):
                tuned = _fit(options, backbone, teacher=backbone if options.get("distill") else None)
                yield replace(tuned, width=width, teacher_width=width if tuned.teacher else 1.0)


def _fit(options: Options, backbone: str, *, teacher: str | None = None, weights: str | None = None) -> PlannedFit:
    return PlannedFit(
        backbone=backbone,
        batch_size=options["batch_size"],
        # Training with simulated 8-bit rounding has no choice of it.
        precision=options.get("precision", "fp32"),
        device=options["device"],
        is_averaged=bool(options.get("ema")),
        teacher=teacher,
        weights=weights,
    )


def _complete(options: Options, stages: Stages, command: str) -> Options:
    """Return a command's options, with the defaults of those that are not given."""
    return {name: options.get(name, one.parameter.default) for name, one in stages[command].options.items()}


def _of_method(step: Step, stages: Stages) -> Options:
    declared = methods_in(stages, step.command).fields(step.method)
    return {name: step.options.get(name, one.parameter.default) for name, one in declared.items()}
