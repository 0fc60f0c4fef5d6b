"""The plan of a study over folds and seeds: read from a document and validated by the commands' option declarations."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chestx_cli.core.command import Stage
from chestx_cli.core.errors import UsageError
from chestx_cli.core.files import identified
from chestx_cli.core.record import Document, Options, changed_options, jsonable
from chestx_cli.core.signature import nearest_first
from chestx_cli.records.cells import PlanDocument, PlannedVariant
from chestx_cli.records.variant import BASELINE
from chestx_cli.settings.values import allowed_keys, checked_options
from chestx_cli.store.directory import Study

if TYPE_CHECKING:
    from chestx_cli.core.options import Methods

# The commands that a cell runs, by name.
Stages = Mapping[str, Stage[..., Any]]

FOLDS, SEEDS = 5, (42,)
PRUNE, QUANTIZE, DISTILL = "prune", "quantize", "distill"
# The commands that a step may name, each with its parameters for what the step names and for the parent.
STEP_COMMANDS: Mapping[str, tuple[str, str]] = {
    PRUNE: ("method", "parent"),
    QUANTIZE: ("method", "parent"),
    DISTILL: ("backbone", "teacher"),
}
TABLES = ("split", "train", "evaluate", "benchmark")
# Options that the study sets itself, so that a plan cannot give them.
SET_BY_STUDY: Mapping[str, frozenset[str]] = {
    "split": frozenset({"data", "study", "folds", "force"}),
    "train": frozenset({"data", "study", "name", "seed", "fetch", "restart", "force"}),
    PRUNE: frozenset({"study", "method", "parent", "name", "seed", "restart", "force"}),
    QUANTIZE: frozenset({"study", "method", "parent", "name", "seed", "restart", "force"}),
    DISTILL: frozenset({"study", "backbone", "teacher", "name", "seed", "fetch", "restart", "force"}),
    "evaluate": frozenset(
        {
            "variants",
            "study",
            "data",
            "name",
            "labels_from",
            "groups",
            "group_regex",
            "allow_leakage",
            "baseline",
            "endpoint",
            "margin",
        }
    ),
    "benchmark": frozenset({"variants", "study", "baseline", "host", "host_python"}),
}
TOP_KEYS = ("data", "folds", "seeds", "endpoint", "margin", *TABLES, "variants")

# Default variants: pruning methods and dynamic INT8 of the original study, and the combination that is fast on a CPU.
DEFAULT_VARIANTS: tuple[Document, ...] = (
    {"name": "oneshot-50", "steps": [{"prune": "oneshot", "amount": 0.5}]},
    {"name": "iterative-3x20", "steps": [{"prune": "iterative", "steps": 3, "amount": 0.2}]},
    {
        "name": "structured-75-static-int8",
        "steps": [
            {"prune": "structured", "amount": 0.75},
            {"quantize": "static"},
        ],
    },
    {"name": "dynamic-int8", "steps": [{"quantize": "dynamic"}]},
)


class PlanError(UsageError):
    """An invalid plan; `path` locates the key or item at fault."""

    def __init__(self, path: Sequence[str | int], fact: str, remedy: str = "") -> None:
        super().__init__(fact, remedy)
        self.path = tuple(path)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command in a variant's chain: its method or backbone, and the plan's options by parameter."""

    command: str
    method: str
    options: Options

    @property
    def key(self) -> str:
        """Return a string that identifies the step: equal steps have equal keys."""
        return json.dumps([self.command, self.method, jsonable(dict(self.options))], sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class VariantPlan:
    """A variant of the study: its steps, starting from the baseline."""

    name: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study makes, and the endpoint and margin of its verdicts.

    `document` is the declared plan with data as a path. `content` is the same without local paths and with the hash of
    each file: it identifies the plan. `files` has the name and hash of each file that an option names, by its path.
    """

    data: Path
    folds: int
    seeds: tuple[int, ...]
    endpoint: str
    margin: float
    options: Mapping[str, Options]
    variants: tuple[VariantPlan, ...]
    document: PlanDocument
    content: PlanDocument
    files: Mapping[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all evaluated variants, the baseline first."""
        return (BASELINE, *(variant.name for variant in self.variants))

    @property
    def sha256(self) -> str:
        """Return the hash of `content`."""
        return self.content.sha256


def default_document(data: Path) -> Document:
    """Return the default plan for a folder of images."""
    return {"data": str(data), "variants": [dict(variant) for variant in DEFAULT_VARIANTS]}


def plan_of(document: Document, stages: Stages, margins: Mapping[str, float], *, base: Path = Path()) -> Plan:
    """Return the plan that a document declares; its relative paths start at `base`.

    `stages` are the commands whose options are allowed, `margins` the registered endpoints with their default margins.
    Raises PlanError for an unknown or missing key, and for a value that the command would refuse.
    """
    _require_known(document, TOP_KEYS, (), "the plan")
    if "data" not in document:
        raise PlanError((), "the plan names no images", 'write data = "FOLDER"')
    data = _resolved(base, _typed(document, ("data",), str, "a folder or a manifest in quotes"))
    folds = _typed(document, ("folds",), int, "a whole number", default=FOLDS)
    if not 2 <= folds <= 100:
        raise PlanError(("folds",), f"folds = {folds} is out of range", "use 2 to 100")
    seeds = _seeds(document.get("seeds", list(SEEDS)))
    endpoint = _typed(document, ("endpoint",), str, "a name in quotes", default=next(iter(margins)))
    if endpoint not in margins:
        raise PlanError(("endpoint",), f"unknown endpoint {endpoint!r}", f"choose one of {', '.join(margins)}")
    margin = document.get("margin", margins[endpoint])
    if not isinstance(margin, float) or not 0 < margin <= 0.5:
        raise PlanError(("margin",), f"margin = {margin} is out of range", "use a number between 0 and 0.5, as 0.02")
    options = {}
    for table in TABLES:
        values = document.get(table, {})
        if not isinstance(values, Mapping):
            raise PlanError((table,), f"{table} is a table of options", f"write [{table}] and the options below it")
        declared = {name: one for name, one in stages[table].options.items() if name not in SET_BY_STUDY[table]}
        options[table] = checked_options(values, declared, base, _fault(table))
    listed = document.get("variants", [dict(variant) for variant in DEFAULT_VARIANTS])
    if not isinstance(listed, list) or not listed:
        raise PlanError(("variants",), "the plan has no variants", "write [[variants]] with a name and steps")
    variants = tuple(_variant(item, at, stages, base) for at, item in enumerate(listed))
    names = [BASELINE, *(variant.name for variant in variants)]
    for at, name in enumerate(names[1:]):
        if name in names[: at + 1]:
            raise PlanError(("variants", at, "name"), f"two variants are named {name!r}", "name each once")
    files = _files_in([*options.values(), *(step.options for variant in variants for step in variant.steps)])
    complete = PlanDocument(
        data=str(data),
        folds=folds,
        seeds=seeds,
        endpoint=endpoint,
        margin=margin,
        **{table: _document(own, stages[table]) for table, own in options.items()},
        variants=tuple(
            PlannedVariant(
                name=variant.name,
                steps=tuple(
                    {step.command: step.method, **_document(step.options, stages[step.command])}
                    for step in variant.steps
                ),
            )
            for variant in variants
        ),
    )
    return Plan(
        data=data,
        folds=folds,
        seeds=seeds,
        endpoint=endpoint,
        margin=margin,
        options=options,
        variants=variants,
        document=complete,
        content=_content(complete, data, files),
        files=files,
    )


def _document(options: Options, stage: Stage[..., Any]) -> Document:
    """Return options in the form of a plan's document: by their flags' names, with values as JSON types."""
    return {
        stage.options[name].opt.flag_of(name).removeprefix("--"): jsonable(value) for name, value in options.items()
    }


def _files_in(options: Iterable[Options]) -> dict[str, str]:
    """Return the name and hash of each file that options name, by its path."""
    named = {str(value) for own in options for value in own.values() if isinstance(value, (str, Path))}
    return {path: identified(Path(path)) for path in sorted(named) if Path(path).is_absolute() and Path(path).is_file()}


def _content(document: PlanDocument, data: Path, files: Mapping[str, str]) -> PlanDocument:
    """Return the content that identifies the plan: without folder paths, and with the sha256 of each file."""

    def shared(value: Any) -> Any:
        if isinstance(value, list):
            return [shared(one) for one in value]
        return files.get(value, value) if isinstance(value, str) else value

    def shared_table(options: Document) -> Document:
        return {key: shared(value) for key, value in options.items()}

    return replace(
        document,
        data=data.name,
        split=shared_table(document.split),
        train=shared_table(document.train),
        evaluate=shared_table(document.evaluate),
        benchmark=shared_table(document.benchmark),
        variants=tuple(
            replace(variant, steps=tuple(map(shared_table, variant.steps))) for variant in document.variants
        ),
    )


def files_of(plan: Plan) -> tuple[Path, ...]:
    """Return the paths every machine must have: the images, and the files that options name."""
    return (plan.data, *map(Path, plan.files))


def flat(content: PlanDocument) -> Options:
    """Return a plan's content with one key per option and per variant, for comparing two plans."""
    return {
        **content.own,
        **{f"{table}.{name}": value for table, options in content.tables.items() for name, value in options.items()},
        **{f"variant {variant.name}": json.dumps(variant.steps, sort_keys=True) for variant in content.variants},
    }


def changes_between(before: PlanDocument, now: PlanDocument) -> list[str]:
    """Return the differences between two plans: an option as `name: old -> new`, a variant added or removed by name."""
    former, present = flat(before), flat(now)
    moved = {name for name in former.keys() ^ present.keys() if name.startswith("variant ")}
    kept = ({name: one for name, one in side.items() if name not in moved} for side in (former, present))
    whole = [f"{name} {'added' if name in present else 'removed'}" for name in (*present, *former) if name in moved]
    return [*changed_options(*kept), *whole]


def selected(document: PlanDocument, names: Sequence[str]) -> PlanDocument:
    """Return a plan's document with only these variants, in its order; raises UsageError for unknown ones."""
    known = [variant.name for variant in document.variants]
    for name in names:
        if name not in known:
            raise UsageError(
                f"the plan has no variant {name!r}", f"choose among {', '.join(nearest_first(name, known))}"
            )
    return replace(document, variants=tuple(variant for variant in document.variants if variant.name in names))


def _variant(item: Any, at: int, stages: Stages, base: Path) -> VariantPlan:
    here = ("variants", at)
    if not isinstance(item, Mapping):
        raise PlanError(here, "a variant is a table with a name and steps", "write [[variants]]")
    _require_known(item, ("name", "steps"), here, "a variant")
    name, steps = item.get("name"), item.get("steps")
    if not isinstance(name, str):
        raise PlanError(here, "a variant has no name", 'write name = "NAME"')
    try:
        Study(Path()).variant(name)
    except UsageError as error:
        raise PlanError((*here, "name"), error.fact, error.remedy) from error
    if name == BASELINE:
        raise PlanError((*here, "name"), f"{BASELINE} is what train makes", "name the variant otherwise")
    if not isinstance(steps, list) or not steps:
        raise PlanError(here, f"variant {name} has no steps", 'write steps = [{ prune = "oneshot", amount = 0.5 }]')
    return VariantPlan(
        name=name, steps=tuple(_step(step, (*here, "steps", i), stages, base) for i, step in enumerate(steps))
    )


def _step(item: Any, here: tuple[str | int, ...], stages: Stages, base: Path) -> Step:
    commands = [command for command in STEP_COMMANDS if isinstance(item, Mapping) and command in item]
    if len(commands) > 1 and isinstance(item.get(DISTILL), bool):
        # An option of pruning has the same name.
        commands.remove(DISTILL)
    if len(commands) != 1:
        raise PlanError(here, "a step is one of prune, quantize and distill", 'write { prune = "METHOD", ... }')
    (command,) = commands
    if command == DISTILL:
        return _distillation(item, here, stages[command], base)
    methods = methods_in(stages, command)
    method = item[command]
    if not isinstance(method, str) or method not in methods.registry:
        raise PlanError(
            (*here, command), f"unknown method {method!r} of {command}", f"choose one of {', '.join(methods.registry)}"
        )
    values = {key: value for key, value in item.items() if key != command}
    declared = {
        name: one
        for name, one in {**stages[command].options, **methods.fields(method)}.items()
        if name not in SET_BY_STUDY[command] and (one.opt.defaults is None or name in methods.fields(method))
    }
    options = checked_options(values, declared, base, _fault(f"{command} = {method!r}", here))
    try:
        methods.make(method, {name: value for name, value in options.items() if name in methods.fields(method)})
    except UsageError as error:
        raise PlanError((*here, command), error.fact, error.remedy) from error
    return Step(command=command, method=method, options=options)


def _distillation(item: Document, here: tuple[str | int, ...], stage: Stage[..., Any], base: Path) -> Step:
    backbone = item[DISTILL]
    try:
        stage.options["backbone"].opt.check("backbone", backbone)
    except UsageError as error:
        raise PlanError((*here, DISTILL), error.fact, error.remedy) from error
    values = {key: value for key, value in item.items() if key != DISTILL}
    declared = {name: one for name, one in stage.options.items() if name not in SET_BY_STUDY[DISTILL]}
    options = checked_options(values, declared, base, _fault(f"{DISTILL} = {backbone!r}", here))
    return Step(command=DISTILL, method=backbone, options=options)


def methods_in(stages: Stages, command: str) -> Methods[Any]:
    """Return the methods of prune or quantize."""
    methods = stages[command].methods
    if methods is None:
        raise ValueError(f"{command} has no methods")
    return methods[1]


def _fault(owner: str, here: tuple[str | int, ...] | None = None) -> Callable[[str, str, str], PlanError]:
    """Return a factory of errors about a table's keys; without `here` the table is `owner`."""
    path = (owner,) if here is None else here
    return lambda key, fact, remedy: PlanError((*path, key), f"{fact} ({owner})", remedy)


def _seeds(value: Any) -> tuple[int, ...]:
    listed = value if isinstance(value, list) else [value]
    if not listed or not all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in listed):
        raise PlanError(("seeds",), f"seeds = {value!r} is no list of seeds", "write seeds = [1, 2, 3]")
    if len(set(listed)) < len(listed):
        raise PlanError(("seeds",), f"seeds = {value!r} names a seed twice", "name each once")
    return tuple(listed)


def _typed(document: Document, path: tuple[str], kind: type[Any], what: str, default: Any = None) -> Any:
    value = document.get(path[0], default)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise PlanError(path, f"{path[0]} = {value!r} is not {what}", f"give {what}")
    return value


def _require_known(table: Document, known: Sequence[str], here: tuple[str | int, ...], owner: str) -> None:
    for key in table:
        if key not in known:
            raise PlanError((*here, key), f"unknown key {key!r} of {owner}", allowed_keys(key, known))


def _resolved(base: Path, path: str) -> Path:
    return (base / Path(path).expanduser()).resolve()
