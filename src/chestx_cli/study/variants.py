"""Making variants: never over another one unasked, and whole or not at all."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chestx_cli.core.errors import StudyError
from chestx_cli.core.files import folder_appears_whole, write_atomic
from chestx_cli.core.record import changed_options, jsonable
from chestx_cli.records.variant import BASELINE, VariantRecord
from chestx_cli.study.caveats import uses_split
from chestx_cli.study.checkpoints import Checkpoints
from chestx_cli.study.documents import write_record
from chestx_cli.study.lineage import uses_models
from chestx_cli.study.locks import hold
from chestx_cli.study.tables import rows_csv

if TYPE_CHECKING:
    from chestx_cli.core.command import Run
    from chestx_cli.study.directory import Study
    from chestx_cli.study.split import Split

DECISION_THRESHOLD = 0.5


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A variant to be made: its name, how, from which parent, and the options that tell it from another."""

    name: str
    method: str
    options: dict[str, Any]
    split: Split
    parent: VariantRecord | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """Return everything that makes it another variant if it changes."""
        return {
            **self.options,
            "split_sha256": self.split.sha256,
            "parent_sha256": self.parent.model_sha256 if self.parent else None,
        }


def open_parent(run: Run, study: Study, name: str) -> tuple[Split, VariantRecord]:
    """Return the split and the torch variant that a command starts from, and note both as its inputs.

    Warns where the variant is stale or is not shown to have learned anything.
    """
    split = study.read_split()
    source = study.read_parent(name, split)
    uses_split(run, study, split)
    for caveat in uses_models(run, study, [source]):
        run.reporter.warn(caveat)
    run.uses(f"{name}/{source.model_file}", source.model_sha256)
    return split, source


def derived_name(parent: VariantRecord, suffix: str) -> str:
    """Return the default name of a variant made from `parent`; the baseline's are named by method alone."""
    return suffix if parent.name == BASELINE else f"{parent.name}-{suffix}"


def already_made(run: Run, study: Study, plan: Plan, *, force: bool) -> VariantRecord | None:
    """Return the variant that the same options made before, or None if it is to be made.

    Raises StudyError where one of this name was made with other options.
    """
    if force or not (study.variant(plan.name) / "variant.json").exists():
        return None
    record = study.read_variant(plan.name)
    before = {**record.options, "split_sha256": record.split_sha256, "parent_sha256": record.parent_sha256}
    changes = changed_options(before, plan.identity)
    if record.parent_sha256 != plan.identity["parent_sha256"]:
        changes = [f"its parent {record.parent} is another one by now", *(c for c in changes if "_sha256" not in c)]
    elif record.split_sha256 != plan.split.sha256:
        changes = ["it was made for another split", *(c for c in changes if "_sha256" not in c)]
    if changes:
        raise StudyError(
            f"variant {plan.name!r} exists and was made with other options ({'; '.join(changes)})",
            "make a second one with --name NAME, or replace it with --force",
        )
    study.read_usable_variant(plan.name, plan.split)
    run.reporter.note(f"already done: {study.variant(plan.name)} was made with these options")
    return record


def being_made(
    run: Run, study: Study, plan: Plan, *, restart: bool = False, checkpoint_every: int | None = None
) -> Checkpoints:
    """Hold the lock of a variant until the command ends; return the checkpoints of what it takes to make it."""
    hold(run, study.root, f"variant {plan.name}")
    checkpoints = Checkpoints(
        folder=study.root / "checkpoints" / plan.name, identity=jsonable(plan.identity), every_steps=checkpoint_every
    )
    if restart:
        checkpoints.clear()
    return checkpoints


def variant_record(
    run: Run, plan: Plan, content: bytes, *, unproven: tuple[str, ...] = (), **parts: Any
) -> VariantRecord:
    """Return the record of a variant whose model file has this content; what its parent did not learn it has not."""
    parent = plan.parent
    return VariantRecord(
        stamp=run.stamp(),
        name=plan.name,
        method=plan.method,
        parent=parent.name if parent else None,
        parent_sha256=parent.model_sha256 if parent else None,
        classes=plan.split.classes,
        positive=plan.split.classes[plan.split.positive],
        threshold=DECISION_THRESHOLD,
        options=plan.options,
        model_sha256=hashlib.sha256(content).hexdigest(),
        model_bytes=len(content),
        split_sha256=plan.split.sha256,
        unproven=parent.unproven if parent else unproven,
        **parts,
    )


def store_variant(study: Study, record: VariantRecord, content: bytes) -> None:
    """Write a variant's folder: it appears whole, or what stood there stays."""
    # Held for moments: whoever else writes into the folder waits for it, and never while it is missing.
    with study.variant_files(record.name), folder_appears_whole(study.variant(record.name)) as folder:
        write_atomic(folder / record.model_file, content)
        if record.training is not None:
            write_atomic(folder / "training.csv", rows_csv(record.training.epochs))
        write_record(folder / "variant.json", record)
