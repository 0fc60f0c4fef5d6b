"""Steps of one cell of a study: their list, their state, and running the remaining ones."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from chestx_cli.cells.plan import PRUNE, STEP_COMMANDS, Plan, PlanError, Stages, Step, methods_in
from chestx_cli.core.errors import ChestxError, OtherOptionsError
from chestx_cli.core.files import make_folder, sha256_of, write_atomic
from chestx_cli.core.progress import Reporter
from chestx_cli.core.record import Options
from chestx_cli.evaluation.reading import read_study
from chestx_cli.evaluation.results import EVALUATIONS, VARIANTS
from chestx_cli.records.sensitivity import GroupSensitivityRecord
from chestx_cli.records.variant import BASELINE
from chestx_cli.store.directory import Study
from chestx_cli.store.locks import locked

TRAIN, EVALUATE, BENCHMARK, SENSITIVITY = "train", "evaluate", "benchmark", "sensitivity"


@dataclass(frozen=True, kw_only=True)
class StudyCell:
    """One fold with one seed: an ordinary study directory."""

    root: Path
    seed: int
    fold: int

    @property
    def name(self) -> str:
        """Return the folder within the study."""
        return f"seed-{self.seed}/fold-{self.fold}"

    @property
    def study(self) -> Study:
        """Return the cell's study directory."""
        return Study(self.root / self.name)


@dataclass(frozen=True, kw_only=True)
class CellStep:
    """One command in a cell; `makes` is the variant that it makes, `parent` the variant that it starts from."""

    command: str
    arguments: Options
    makes: str = ""
    parent: str = ""

    @property
    def label(self) -> str:
        """Return the step's name in progress bars."""
        return f"{self.command} {self.makes or self.parent}".strip()


@dataclass(frozen=True, kw_only=True)
class CellFailure:
    """A command that failed in a cell: the command line that reproduces it, and its error."""

    cell: str
    command: str
    fact: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class CellState:
    """Progress of a cell: duration of each finished step by label, and the remaining steps."""

    cell: StudyCell
    durations_s: Mapping[str, float] = field(default_factory=dict)
    left: tuple[CellStep, ...] = ()


def cells_of(plan: Plan, root: Path) -> tuple[StudyCell, ...]:
    """Return all cells, all folds of a seed before the next seed."""
    return tuple(StudyCell(root=root, seed=seed, fold=fold) for seed in plan.seeds for fold in range(1, plan.folds + 1))


def seed_folder(root: Path, seed: int) -> Study:
    """Return the study of one seed's folds."""
    return Study(root / f"seed-{seed}")


def chain_of(plan: Plan) -> Iterator[tuple[str, str, Step]]:
    """Yield the name, the parent and the step of each variant to make; steps that chains share are made once.

    An intermediate result that is not itself a variant of the plan is named NAME.step-1.
    """
    named = {tuple(step.key for step in variant.steps): variant.name for variant in plan.variants}
    if len(named) < len(plan.variants):
        twin = next(v for v in plan.variants if named[tuple(step.key for step in v.steps)] != v.name)
        other = named[tuple(step.key for step in twin.steps)]
        raise PlanError(("variants",), f"{twin.name} and {other} have the same steps", "leave one of them out")
    made: dict[tuple[str, ...], str] = {}
    for variant in plan.variants:
        parent, keys = BASELINE, tuple(step.key for step in variant.steps)
        for at, step in enumerate(variant.steps, start=1):
            link = keys[:at]
            if link not in made:
                made[link] = named.get(link, f"{variant.name}.step-{at}")
                yield made[link], parent, step
            parent = made[link]


def steps_of(plan: Plan, cell: StudyCell, stages: Stages) -> tuple[CellStep, ...]:
    """Return the commands of a cell in their order: train, the variants' chains, evaluate."""
    folder = cell.study.root
    steps = [
        CellStep(
            command=TRAIN,
            arguments={"study": folder, "seed": cell.seed, **plan.options["train"]},
            makes=BASELINE,
        )
    ]
    for name, parent, step in chain_of(plan):
        steps += _measured_first(step, parent, folder, stages)
        stage = stages[step.command]
        seeded = "seed" in stage.options or "seed" in methods_in(stages, step.command).fields(step.method)
        of_method, of_parent = STEP_COMMANDS[step.command]
        steps.append(
            CellStep(
                command=step.command,
                arguments={
                    "study": folder,
                    of_method: step.method,
                    of_parent: parent,
                    "name": name,
                    **({"seed": cell.seed} if seeded else {}),
                    **step.options,
                },
                makes=name,
                parent=parent,
            )
        )
    judged = {"endpoint": plan.endpoint, "margin": plan.margin, **plan.options["evaluate"]}
    steps.append(CellStep(command=EVALUATE, arguments={"variants": plan.names, "study": folder, **judged}))
    return tuple(steps)


def _measured_first(step: Step, parent: str, folder: Path, stages: Stages) -> list[CellStep]:
    """Return the sensitivity step that a pruning method needs first, if any."""
    if step.command != PRUNE:
        return []
    methods = methods_in(stages, step.command)
    fields = methods.fields(step.method)
    method = methods.make(step.method, {name: value for name, value in step.options.items() if name in fields})
    kind = method.sensitivity
    if kind is None:
        return []
    structured = kind is GroupSensitivityRecord
    criterion = step.options.get("criterion")
    arguments = {"study": folder, "parent": parent, "structured": structured, "criterion": criterion}
    return [CellStep(command=SENSITIVITY, arguments=arguments, parent=parent)]


def state_of(plan: Plan, cell: StudyCell, stages: Stages) -> CellState:
    """Return the progress of a cell from its records alone: no model and no heavy library is loaded."""
    steps = steps_of(plan, cell, stages)
    study = cell.study
    durations_s: dict[str, float] = {}
    current: set[str] = set()
    left: list[CellStep] = []
    try:
        split_sha256 = study.read_split_record().split_csv_sha256
    except ChestxError:
        return CellState(cell=cell, left=steps)
    hashes: dict[str, str] = {}
    for step in steps:
        duration_s = None
        if step.makes:
            duration_s = _made_s(study, step, stages, split_sha256, hashes, plan.files)
        elif step.command == EVALUATE and current >= set(plan.names):
            duration_s = _evaluated_s(study, step, stages, plan.names)
        if duration_s is not None:
            durations_s[step.label] = duration_s
            current.add(step.makes)
        else:
            left.append(step)
    # A sensitivity measurement remains only if a variant that needs it remains.
    wanted = {step.parent for step in left if step.command == PRUNE}
    left = [step for step in left if step.command != SENSITIVITY or step.parent in wanted]
    return CellState(cell=cell, durations_s=durations_s, left=tuple(left))


def _made_s(
    study: Study, step: CellStep, stages: Stages, split_sha256: str, hashes: dict[str, str], files: Mapping[str, str]
) -> float | None:
    """Return the duration of making a variant in seconds; None if it is missing or was made otherwise."""
    try:
        record = study.read_variant(step.makes)
    except ChestxError:
        return None
    # Command lines have a file's name; its hash is among the options.
    named = {name: files[value] for name, value in step.arguments.items() if isinstance(value, str) and value in files}
    same = (
        _without_again(record.stamp.command) == shlex.split(stages[step.command].recorded_line(**step.arguments))
        and record.split_sha256 == split_sha256
        and record.parent_sha256 == (hashes.get(step.parent) if step.parent else None)
        and all(record.options.get(name) == file for name, file in named.items())
        and (study.variant(step.makes) / record.model_file).is_file()
    )
    if not same:
        return None
    hashes[step.makes] = record.model_sha256
    return record.stamp.duration_s


def _evaluated_s(study: Study, step: CellStep, stages: Stages, names: tuple[str, ...]) -> float | None:
    """Return the duration of the evaluation in seconds; None if it is missing or has other variants or options."""
    try:
        results = read_study(study, parts=(VARIANTS, EVALUATIONS), names=names, check_models=False)
    except ChestxError:
        return None
    evaluations = [variant.evaluation for variant in results.variants]
    wanted = stages[EVALUATE].recorded_line(**step.arguments)
    if len(evaluations) < len(names) or any(one is None or one.stamp.command != wanted for one in evaluations):
        return None
    return next(one.stamp.duration_s for one in evaluations if one is not None)


def _without_again(line: str) -> list[str]:
    return [word for word in shlex.split(line) if word not in {"--force", "--restart"}]


class CellReporter(Reporter, Protocol):
    """Receives the progress of a cell's commands and the start and end of each step."""

    def step(self, label: str, *, at: int, of: int) -> None:
        """Handle the start of step `at` of `of`."""

    def took(self, label: str, seconds: float) -> None:
        """Handle the end of a successful step."""


def make_cell(plan: Plan, cell: StudyCell, stages: Stages, reporter: CellReporter) -> CellFailure | None:
    """Run the remaining steps of a cell; return the first failure.

    A variant that was made with other options, or from another parent, is made again. Two processes never run the same
    cell: the second waits until the first has ended.
    """
    with locked(cell.study.root, "the cell", f"chestx study ({cell.name})", wait=True):
        state = state_of(plan, cell, stages)
        done = len(state.durations_s)
        for at, step in enumerate(state.left, start=done + 1):
            reporter.step(step.label, at=at, of=done + len(state.left))
            started_s = time.monotonic()
            if failure := _failure(cell, step, stages, reporter):
                return failure
            reporter.took(step.label, time.monotonic() - started_s)
    return None


def _failure(cell: StudyCell, step: CellStep, stages: Stages, reporter: Reporter) -> CellFailure | None:
    stage, arguments = stages[step.command], dict(step.arguments)
    try:
        try:
            stage.run(reporter, **arguments)
        except OtherOptionsError:
            # A variant made with other options is replaced, and so is the unfinished run of one.
            again = {name: True for name in ("force", "restart") if name in stage.options}
            stage.run(reporter, **arguments, **again)
    except ChestxError as error:
        line = stage.command_line(**arguments)
        return CellFailure(cell=cell.name, command=line, fact=error.fact, remedy=error.remedy)
    return None


def split_cells(plan: Plan, root: Path, stages: Stages, reporter: Reporter) -> None:
    """Divide the images into folds, once for all seeds; raises as `split` does.

    The command makes the folds of the first seed; those of the other seeds are copies.
    """
    first, *others = (seed_folder(root, seed) for seed in plan.seeds)
    arguments = {"data": plan.data, "study": first.root, "folds": plan.folds, **plan.options["split"]}
    try:
        stages["split"].run(reporter, **arguments)
    except OtherOptionsError:
        stages["split"].run(reporter, **arguments, force=True)
    except ChestxError as error:
        error.point_to("split")
        raise
    for study in others:
        if study.folds_json.is_file() and sha256_of(study.folds_json) == sha256_of(first.folds_json):
            continue
        for fold in range(1, plan.folds + 1):
            source, target = first.fold(fold), study.fold(fold)
            make_folder(target.root)
            for name in ("split_csv", "duplicates_csv", "split_json"):
                write_atomic(getattr(target, name), getattr(source, name).read_bytes())
        # Written last: an interrupted copy has no such file and is repeated.
        write_atomic(study.folds_json, first.folds_json.read_bytes())
