"""Making variants: an existing one is replaced only with --force, and each is stored completely or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from chestx_cli.core.errors import OtherOptionsError, UsageError
from chestx_cli.core.files import folder_appears_whole, write_atomic
from chestx_cli.core.record import changed_options, jsonable
from chestx_cli.records.variant import BASELINE, MODEL_FILES, VariantRecord
from chestx_cli.store.caveats import uses_split
from chestx_cli.store.checkpoints import Checkpoints
from chestx_cli.store.documents import write_record
from chestx_cli.store.lineage import uses_models, with_ancestors
from chestx_cli.store.locks import hold
from chestx_cli.store.tables import rows_csv

if TYPE_CHECKING:
    from chestx_cli.core.command import Run
    from chestx_cli.records.preprocessing import Preprocessing
    from chestx_cli.records.variant import Pruning, Quantization, Structure, Training
    from chestx_cli.store.directory import Study
    from chestx_cli.store.split import Split

DECISION_THRESHOLD = 0.5


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A variant to be made: name, method, parent, and the options that distinguish it from others."""

    name: str
    method: str
    options: Mapping[str, object]
    split: Split
    parent: VariantRecord | None = None

    @property
    def identity(self) -> dict[str, object]:
        """Return the values that identify the variant: if one differs, it is another variant."""
        return {
            **self.options,
            "split_sha256": self.split.sha256,
            "parent_sha256": self.parent.model_sha256 if self.parent else None,
        }


def open_parent(run: Run, study: Study, name: str) -> tuple[Split, VariantRecord]:
    """Return the split and the torch variant that a command starts from, and record both as its inputs.

    Warns if the variant is stale or not shown to have learned anything.
    """
    split = study.read_split()
    source = study.read_parent(name, split)
    uses_split(run, study, split)
    for caveat in uses_models(run, study, [source]):
        run.warn(caveat)
    run.uses(f"{name}/{source.model_file}", source.model_sha256)
    return split, source


def derived_name(parent: VariantRecord, suffix: str) -> str:
    """Return the default name of a variant made from `parent`; the suffix alone if the parent is the baseline."""
    return suffix if parent.name == BASELINE else f"{parent.name}-{suffix}"


def _require_own_name(study: Study, plan: Plan) -> None:
    """Raise UsageError if the variant would replace one that it is made from."""
    if plan.parent is not None and plan.name in with_ancestors(study, [plan.parent]):
        what = "itself" if plan.name == plan.parent.name else f"{plan.parent.name}, which descends from it"
        raise UsageError(
            f"variant {plan.name!r} cannot be made from {what}: it would replace its own ancestor",
            "give the new variant another --name",
        )


def _already_made(run: Run, study: Study, plan: Plan) -> VariantRecord | None:
    """Return the existing variant made with the same options, or None if it must be made.

    Raises OtherOptionsError if a variant of this name was made with other options.
    """
    if not (study.variant(plan.name) / "variant.json").exists():
        return None
    record = study.read_variant(plan.name)
    before = {**record.options, "split_sha256": record.split_sha256, "parent_sha256": record.parent_sha256}
    changes = changed_options(before, plan.identity)
    if record.parent_sha256 != plan.identity["parent_sha256"]:
        changes = [f"its parent {record.parent} has changed since", *(c for c in changes if "_sha256" not in c)]
    elif record.split_sha256 != plan.split.sha256:
        changes = ["it was made for another split", *(c for c in changes if "_sha256" not in c)]
    if changes:
        raise OtherOptionsError(
            f"variant {plan.name!r} exists and was made with other options ({'; '.join(changes)})",
            "make a second one with --name NAME, or replace it with --force",
        )
    study.read_usable_variant(plan.name, plan.split)
    run.reporter.note(f"already done: {study.variant(plan.name)} was made with these options")
    return record


@dataclass(frozen=True, kw_only=True)
class Rerun:
    """How a command treats an existing variant and existing checkpoints."""

    force: bool
    restart: bool
    checkpoint_every: int | None


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model to store as a variant: the content of its file, and its properties for the record."""

    kind: Literal["torch", "onnx"]
    content: bytes
    backbone: str
    preprocessing: Preprocessing
    parameters: int
    nonzero_parameters: int
    macs: int


@dataclass(frozen=True, kw_only=True)
class Making:
    """A variant being made, with its lock held; `existing` is the variant already made with the same options."""

    run: Run
    study: Study
    plan: Plan
    checkpoints: Checkpoints
    existing: VariantRecord | None

    def stored(self) -> VariantRecord:
        """Return the record of the variant, which must be stored by now."""
        return self.study.read_variant(self.plan.name)

    def store(
        self,
        model: Model,
        *,
        training: Training | None = None,
        pruning: Pruning | None = None,
        structure: Structure | None = None,
        quantization: Quantization | None = None,
        calibration_sha256: str | None = None,
        unproven: tuple[str, ...] = (),
        notes: tuple[str, ...] = (),
    ) -> VariantRecord:
        """Store a model as the variant and return its record; it inherits `unproven` from its parent, if any."""
        plan, parent = self.plan, self.plan.parent
        record = VariantRecord(
            stamp=self.run.stamp(),
            name=plan.name,
            kind=model.kind,
            method=plan.method,
            parent=parent.name if parent else None,
            parent_sha256=parent.model_sha256 if parent else None,
            backbone=model.backbone,
            classes=plan.split.classes,
            positive=plan.split.classes[plan.split.positive],
            preprocessing=model.preprocessing,
            threshold=DECISION_THRESHOLD,
            options=dict(plan.options),
            model_file=MODEL_FILES[model.kind],
            model_sha256=hashlib.sha256(model.content).hexdigest(),
            model_bytes=len(model.content),
            parameters=model.parameters,
            nonzero_parameters=model.nonzero_parameters,
            macs=model.macs,
            split_sha256=plan.split.sha256,
            calibration_sha256=calibration_sha256,
            training=training,
            unproven=(*(parent.unproven if parent else ()), *unproven),
            pruning=pruning,
            structure=structure,
            quantization=quantization,
            notes=notes,
        )
        with self.run.reporter.progress(f"Storing {record.name}", None):
            _write(self.study, record, model.content)
        return record


@contextmanager
def making(run: Run, study: Study, plan: Plan, rerun: Rerun, *, leads: bool = True) -> Iterator[Making]:
    """Hold the lock of a variant until the command ends; yields the variant to be made, with its checkpoints.

    If it was already made with the same options, `existing` is set and nothing needs to be done. The checkpoints are
    removed when the block ends without an error. Of several processes making a variant together, only the one that
    `leads` locks and removes. Raises StudyError if another command is making it, or it was made with other options,
    and UsageError if it would replace its parent or another ancestor.
    """
    _require_own_name(study, plan)
    if leads:
        hold(run, study.root, f"variant {plan.name}")
    checkpoints = Checkpoints(
        folder=study.root / "checkpoints" / plan.name,
        identity=jsonable(plan.identity),
        every_steps=rerun.checkpoint_every,
    )
    if leads and rerun.restart:
        checkpoints.clear()
    existing = None if rerun.force else _already_made(run, study, plan)
    if leads and existing is None:
        # Before anything is computed.
        checkpoints.require_own()
    yield Making(run=run, study=study, plan=plan, checkpoints=checkpoints, existing=existing)
    if leads:
        checkpoints.clear()


def _write(study: Study, record: VariantRecord, content: bytes) -> None:
    """Write a variant's folder atomically: readers see either the old or the complete new folder."""
    # Held briefly: other commands that write into the folder wait, so they never find it missing.
    with study.variant_files(record.name), folder_appears_whole(study.variant(record.name)) as folder:
        write_atomic(folder / record.model_file, content)
        if record.training is not None:
            write_atomic(folder / "training.csv", rows_csv(record.training.epochs))
        write_record(folder / "variant.json", record)
