"""`chestx study`: a whole study over folds and seeds, from one plan to one decision."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from chestx_cli.cells import local, ray_cluster
from chestx_cli.cells.declaring import Given, declare, declared_plan
from chestx_cli.cells.fits import PlannedFit, fits_of
from chestx_cli.cells.plan import DISTILL, Plan, Stages, files_of
from chestx_cli.cells.pooling import benchmark_arguments, benchmarks_of, pool, read_cell
from chestx_cli.cells.processes import Executor, serve
from chestx_cli.cells.running import RunningCells, cells_left
from chestx_cli.cells.steps import CellFailure, StudyCell, cells_of, split_cells, state_of
from chestx_cli.cells.study_file import STUDY_FILE
from chestx_cli.commands.benchmark import benchmark
from chestx_cli.commands.distill import distill
from chestx_cli.commands.evaluate import evaluate
from chestx_cli.commands.prune import prune
from chestx_cli.commands.quantize import quantize
from chestx_cli.commands.sensitivity import sensitivity
from chestx_cli.commands.split import split
from chestx_cli.commands.train import train
from chestx_cli.compression.pruning.width import require_width
from chestx_cli.core.command import Run, Stage, stage
from chestx_cli.core.errors import StudyError, UsageError, again, command_line
from chestx_cli.core.files import make_folder, write_atomic
from chestx_cli.core.machine import available_bytes, available_threads
from chestx_cli.core.options import Opt, parse_counts, parse_names
from chestx_cli.core.record import Answer, Options, jsonable
from chestx_cli.core.shared_options import Force, Margin, Refinements, StudyDir
from chestx_cli.evaluation.endpoints import ENDPOINTS
from chestx_cli.networks.backbones import BACKBONES
from chestx_cli.networks.devices import resolve_device, resolve_precision
from chestx_cli.networks.memory import training_bytes
from chestx_cli.networks.weights.pretrained import find_weights
from chestx_cli.records.cells import (
    DryRunRecord,
    FailureRow,
    PlanRecord,
    StudyFileRecord,
    StudyRecord,
)
from chestx_cli.reporting import study_answer
from chestx_cli.reporting.study_answer import duration_text
from chestx_cli.store.caveats import stamps_of
from chestx_cli.store.directory import Study
from chestx_cli.store.documents import write_record
from chestx_cli.store.locks import hold

STAGES: Stages = {
    "split": split,
    "train": train,
    "sensitivity": sensitivity,
    "prune": prune,
    "distill": distill,
    "quantize": quantize,
    "evaluate": evaluate,
    "benchmark": benchmark,
}
FIRST_SEED = 42


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return `3` as three seeds and `1,2,3` as these; raises ValueError."""
    if "," in text:
        return parse_counts(text.rstrip(","))
    return tuple(range(FIRST_SEED, FIRST_SEED + int(text)))


def _is_declared(arguments: Options) -> bool:
    """Return whether a study file or a stored plan declares the study; configuration files must not change it then."""
    data, root = arguments["data"], arguments["study"]
    return (data is not None and data.suffix == ".toml") or Study(root).plan_json.exists()


def _require_init(arguments: Options) -> None:
    if arguments["force"] and not arguments["init"]:
        raise UsageError(
            "--force replaces a study file",
            "give it with --init; a changed plan renews cells by itself",
            option="force",
        )


@stage(
    examples=("chestx study data/ --seeds 3", "chestx study --init", "chestx study study.toml --jobs 2"),
    after="compress",
    is_declared=_is_declared,
    check=_require_init,
)
def study(
    run: Run,
    data: Annotated[
        Path | None,
        Opt(help="Images, or a study file; the stored plan by default.", argument=True, metavar="DATA|FILE.toml"),
    ] = None,
    *,
    study: StudyDir = Path("study"),
    folds: Annotated[int | None, Opt(help="Folds; 5 unless the plan has others.", minimum=2, maximum=100)] = None,
    seeds: Annotated[
        tuple[int, ...],
        Opt(
            help="How many seeds, or which: 3 or 1,2,3.",
            parse=parse_seeds,
            show=lambda seeds: ",".join(map(str, (*seeds, *([""] if len(seeds) == 1 else [])))),
            metavar="N|INT,...",
        ),
    ] = (),
    variants: Annotated[
        tuple[str, ...],
        Opt(help="Only these variants of the plan.", parse=parse_names, show=",".join, metavar="NAME,..."),
    ] = (),
    endpoint: Annotated[str | None, Opt(help="What the verdict is on; accuracy.", choices=ENDPOINTS)] = None,
    margin: Margin = None,
    backbone: Annotated[str | None, Opt(help="Network to train; resnet50.", choices=BACKBONES)] = None,
    weights: Annotated[
        str | None,
        Opt(help="imagenet, none, or a file of weights.", metavar="imagenet|none|FILE", names_file=True),
    ] = None,
    epochs: Annotated[int | None, Opt(help="Epochs of the baseline; 12.", minimum=1)] = None,
    jobs: Annotated[int, Opt(help="Cells at a time; they share the processors.", minimum=1, identity=False)] = 1,
    ray: Annotated[
        str | None,
        Opt(help="Make cells on a Ray cluster; --jobs is per machine.", metavar="auto|HOST:PORT", identity=False),
    ] = None,
    fetch: Annotated[bool, Opt(help="Download ImageNet weights that are not here.", identity=False)] = False,
    dry_run: Annotated[bool, Opt(help="Show the cells and the time; make nothing.", identity=False)] = False,
    init: Annotated[bool, Opt(help="Write a commented study file; make nothing.", identity=False)] = False,
    force: Force = False,
) -> StudyRecord | DryRunRecord | StudyFileRecord:
    """Train, compress and judge over folds and seeds: one decision.

    Every image is tested once per seed, by a model that has not seen its patient. The plan, with the endpoint and its
    margin, is stored before the first test image is predicted. A cell, one fold with one seed, is a study directory.

    What is done is not done again: a changed option renews what depends on it, and a study that was killed goes on.
    """
    if init:
        return _write_file(run, data, force=force)
    if Study(study).split_json.exists() or Study(study).folds_json.exists():
        raise StudyError(f"{study}/ has a split of its own", "begin another folder with --study DIR")
    given = Given(
        folds=folds,
        seeds=seeds,
        endpoint=endpoint,
        margin=margin,
        variants=variants,
        train={"backbone": backbone, "weights": _absolute(weights), "epochs": epochs},
    )
    plan = declared_plan(study, data, given, STAGES)
    if dry_run:
        return _dry_run(run, plan, study)
    _require_cells_can_run(plan, jobs, ray, fetch=fetch)
    make_folder(study)
    hold(run, study, "the study")
    declared = declare(run, study, plan)
    split_cells(plan, study.resolve(), STAGES, run.reporter)
    failures = _make_cells(run, plan, study.resolve(), _executor(plan, jobs, ray))
    if not failures:
        _benchmark(run, plan, study.resolve())
    return _answered(run, plan, study, declared, failures)


def _absolute(weights: str | None) -> str | None:
    return str(Path(weights).resolve()) if weights and Path(weights).is_file() else weights


def _write_file(run: Run, path: Path | None, *, force: bool) -> StudyFileRecord:
    file, data = (path, "data") if path and path.suffix == ".toml" else (Path("study.toml"), str(path or "data"))
    if file.exists() and not force:
        raise StudyError(f"{file} exists", f"{again('--force')} replaces it")
    write_atomic(file, STUDY_FILE.replace('data = "data"', f"data = {json.dumps(data, ensure_ascii=False)}"))
    answer = Answer(
        sentence=f"{file} has the default study, with a comment for every key.", next_command=f"chestx study {file}"
    )
    return StudyFileRecord(stamp=run.stamp(), path=str(file), answer=answer)


def _dry_run(run: Run, plan: Plan, root: Path) -> DryRunRecord:
    rows, seconds_left = cells_left(plan, root, STAGES)
    words = [word for word in shlex.split(run.line) if word != "--dry-run"]
    return DryRunRecord(
        stamp=run.stamp(),
        plan_sha256=plan.sha256,
        seconds_left=seconds_left,
        rows=rows,
        answer=study_answer.of_dry_run(rows, seconds_left, command_line(words)),
    )


def _memory_bytes(plan: Plan, precision_of: Callable[[PlannedFit], str]) -> int:
    """Return the estimated memory of a cell: that of its largest fit, in the precision that the function returns."""
    image_size_px = plan.options["train"].get("image_size", train.options["image_size"].parameter.default)
    return max(
        training_bytes(
            fit.backbone,
            image_size_px,
            fit.batch_size,
            precision_of(fit),
            is_averaged=fit.is_averaged,
            teacher=fit.teacher,
            width=fit.width,
            teacher_width=fit.teacher_width,
        )
        for fit in fits_of(plan, STAGES)
    )


def _precision_here(fit: PlannedFit) -> str:
    return resolve_precision(fit.precision, resolve_device(fit.device))


def _precision_anywhere(fit: PlannedFit) -> str:
    # With "auto", the training machine chooses the precision; fp32 needs the most memory.
    return "fp32" if fit.precision == "auto" else fit.precision


def _require_possible_fit(options: Options, stage: Stage[..., Any]) -> None:
    epochs = options.get("epochs", stage.options["epochs"].parameter.default)
    Refinements.of(options).require_possible(epochs)


def _require_cells_can_run(plan: Plan, jobs: int, ray: str | None, *, fetch: bool) -> None:
    """Raise WeightsError for missing weights and UsageError for too many jobs, before anything is written.

    The processors and memory of a Ray cluster are checked later, when it is joined.
    """
    for fit in fits_of(plan, STAGES):
        if fit.weights is not None:
            find_weights(fit.backbone, fit.weights, fetch=fetch)
            require_width(fit.backbone, fit.width)
    _require_possible_fit(plan.options["train"], train)
    for step in (step for variant in plan.variants for step in variant.steps if step.command == DISTILL):
        _require_possible_fit(step.options, distill)
    if ray is not None:
        ray_cluster.require_ray()
        return
    if jobs == 1:
        return
    if jobs > available_threads():
        raise UsageError(
            f"--jobs {jobs} is more than the {available_threads()} processors of this machine",
            f"{again(f'--jobs {available_threads()}')} uses all",
        )
    needed, there = _memory_bytes(plan, _precision_here), available_bytes()
    if there is not None and jobs * needed > there:
        fitting = max(1, there // needed)
        raise UsageError(
            f"{jobs} trainings at a time need about {jobs * needed / 1e9:.1f} GB of memory, and {there / 1e9:.1f} GB "
            "are free",
            f"{again(f'--jobs {fitting}')} fits",
        )


def _executor(plan: Plan, jobs: int, ray: str | None) -> Executor:
    """Return the executor: processes on this machine, or a Ray cluster."""
    if ray is None:
        return partial(local.make_cells, module=__name__, jobs=jobs)
    device = fits_of(plan, STAGES)[0].device
    needs = ray_cluster.Needs(
        memory_bytes=_memory_bytes(plan, _precision_anywhere),
        gpu=None if device == "auto" else device == "cuda",
        files=files_of(plan),
    )
    return partial(ray_cluster.make_cells, module=__name__, address=ray, jobs=jobs, needs=needs)


def _make_cells(run: Run, plan: Plan, root: Path, make: Executor) -> list[CellFailure]:
    """Run all cells and return their failures."""
    states = [state_of(plan, cell, STAGES) for cell in cells_of(plan, root)]
    cells = [state.cell for state in states if state.left]
    failures: list[CellFailure] = []
    if len(cells) < len(states):
        run.reporter.note(f"already done: {len(states) - len(cells)} of {len(states)} cells")
    if not cells:
        return []
    ended = len(states) - len(cells)
    with run.reporter.side_by_side("Cells", len(states), done=ended) as lines:
        running = RunningCells(states, lines, run.reporter.note)

        def on_end(cell: StudyCell, failure: CellFailure | None) -> None:
            nonlocal ended
            ended += 1
            if failure is not None:
                failures.append(failure)
            left_s = running.end(cell)
            text = f"{cell.name} {'failed' if failure else 'done'}: {ended} of {len(states)} cells"
            text = f"{text}, about {duration_text(left_s)} left" if left_s else text
            lines.end(cell.name, text, failed=failure is not None)

        make(cells, on_event=running.take, on_end=on_end)
    return sorted(failures, key=lambda failure: [state.cell.name for state in states].index(failure.cell))


def _benchmark(run: Run, plan: Plan, root: Path) -> None:
    """Time all variants in the first cell only: a variant has the same architecture in every cell."""
    cell = cells_of(plan, root)[0]
    if len(benchmarks_of(plan, cell, read_cell(plan, cell), STAGES)) < len(plan.names):
        run.make(benchmark, **benchmark_arguments(plan, cell))


def _answered(run: Run, plan: Plan, shown: Path, declared: PlanRecord, failures: list[CellFailure]) -> StudyRecord:
    """Pool all complete cells, store the results and return them; `shown` is the study's folder as typed."""
    root = shown.resolve()
    pooled = pool(plan, root, STAGES)
    for name, sha256 in pooled.inputs.items():
        run.uses(name, sha256)
    run.stamped(stamps_of(pooled.caveats))
    record = StudyRecord(
        stamp=run.stamp(),
        notes=(*pooled.caveats, *filter(None, (pooled.noise_sentence,)), *_notes(plan, pooled.seeds)),
        plan_sha256=plan.sha256,
        declared=declared.declared,
        endpoint=plan.endpoint,
        margin=plan.margin,
        folds=plan.folds,
        seeds=pooled.seeds,
        images=pooled.images,
        patients=pooled.patients,
        positive=pooled.positive,
        positives=pooled.positives,
        device=next((benchmark.device for benchmark in pooled.benchmarks.values()), None),
        noise_floor=pooled.noise_floor,
        baseline_faults=pooled.baseline_faults,
        rows=pooled.rows,
        seed_rows=pooled.seed_rows,
        noise=pooled.noise,
        exemplars=pooled.exemplars,
        rates=pooled.rates,
        prevalences=pooled.prevalences,
        cell_rows=pooled.cell_rows,
        amendments=declared.amendments,
        failures=tuple(FailureRow(**jsonable(failure)) for failure in failures),
    )
    write_record(Study(root).study_json, record)
    choice = study_answer.choice_of(record, pooled.records, pooled.benchmarks)
    return record.replace(answer=study_answer.of_study(record, shown, choice, pooled.noise_sentence))


def _notes(plan: Plan, seeds: Sequence[int]) -> tuple[str, ...]:
    notes = [
        "Each image is tested once per seed, in the fold that holds it back; values are of each fold by itself, since "
        "scores of different models are not on one scale. A patient counts once, by the mean over seeds.",
        "Verdicts are corrected for the number of variants (Holm). Latency was measured once, in the first cell.",
    ]
    if missing := [seed for seed in plan.seeds if seed not in seeds]:
        notes.append(f"Left out, since not all folds are tested: seed {', '.join(map(str, missing))}.")
    if len(seeds) == 1:
        notes.append("One seed: what another training of the same recipe would give is not known.")
    return tuple(notes)


if __name__ == "__main__":
    serve(STAGES)
