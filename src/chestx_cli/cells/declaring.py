"""The declared plan of a study: from its file, its images or the store; stored before test images are predicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.cells.plan import Plan, PlanError, Stages, changes_between, default_document, plan_of, selected
from chestx_cli.core.errors import StudyError, UsageError
from chestx_cli.core.record import Document, Options, jsonable
from chestx_cli.evaluation.endpoints import ENDPOINTS
from chestx_cli.records.cells import Amendment, PlanRecord
from chestx_cli.settings.toml_files import line_of, read_toml
from chestx_cli.store.directory import Study
from chestx_cli.store.documents import read_record, write_record

if TYPE_CHECKING:
    from chestx_cli.core.command import Run


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a command line sets of a plan; an empty value leaves it to the study file or to the stored plan.

    `train` has options of the command by parameter. `variants` selects among those of the plan.
    """

    folds: int | None = None
    seeds: tuple[int, ...] = ()
    endpoint: str | None = None
    margin: float | None = None
    variants: tuple[str, ...] = ()
    train: Options = field(default_factory=dict)

    def applied_to(self, document: Document) -> Document:
        """Return a plan's document with these values; the margin of another endpoint is not kept."""
        kept = dict(document)
        if self.endpoint is not None and self.margin is None:
            kept.pop("margin", None)
        own = {"folds": self.folds, "seeds": list(self.seeds), "endpoint": self.endpoint, "margin": self.margin}
        trained, table = {key: value for key, value in self.train.items() if value is not None}, kept.get("train", {})
        # Where the file has something else under this name, the plan is refused.
        if trained and isinstance(table, Mapping):
            kept["train"] = {**table, **trained}
        return {**kept, **{key: value for key, value in own.items() if value not in (None, [])}}


def declared_plan(root: Path, data: Path | None, given: Given, stages: Stages) -> Plan:
    """Return the plan of the study file, the images or the store, with what the command line sets.

    Raises UsageError, which names the line of a study file, and StudyError if nothing names the images.
    """
    margins = {name: endpoint.margin for name, endpoint in ENDPOINTS.items()}
    stored = stored_plan(root)
    text, base = "", Path()
    if data is not None and data.suffix == ".toml":
        document, text = read_toml(data, '"chestx study --init" writes a file that is')
        base = data.resolve().parent
    elif data is not None and (stored is None or stored.document.data != str(data.resolve())):
        if not data.exists():
            raise UsageError(f"no images at {data}", "name a folder, a manifest, or a study file that ends in .toml")
        document = default_document(data.resolve())
    elif stored is not None:
        document = jsonable(stored.document)
    else:
        raise StudyError(f"no plan in {root}/", 'name the images: "chestx study DATA"')
    try:
        plan = plan_of(given.applied_to(document), stages, margins, base=base)
        if not given.variants:
            return plan
        return plan_of(jsonable(selected(plan.document, given.variants)), stages, margins)
    except PlanError as error:
        line = line_of(text, error.path) if text else None
        where = f"{data}, line {line}: " if line else f"{data}: " if text else ""
        raise UsageError(f"{where}{error.fact}", error.remedy) from error


def plan_in(root: Path, stages: Stages) -> Plan:
    """Return the stored plan of a study."""
    return declared_plan(root, None, Given(), stages)


def stored_plan(root: Path) -> PlanRecord | None:
    """Return the stored plan of a study as its record; None without one."""
    path = Study(root).plan_json
    return read_record(PlanRecord, path) if path.exists() else None


def declare(run: Run, root: Path, plan: Plan) -> PlanRecord:
    """Store the plan, or check the stored one; record a change made after test images were predicted."""
    before = stored_plan(root)
    if before is not None and before.sha256 == plan.sha256 and before.document == plan.document:
        return before
    tested = {path.parents[2] for path in root.glob("seed-*/fold-*/variants/*/predictions.test.csv")}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    amendments = before.amendments if before else ()
    is_changed = before is not None and before.sha256 != plan.sha256
    if tested and (before is None or is_changed):
        # Without the earlier plan, nothing shows that this one was declared before the test images were predicted.
        changes = changes_between(before.content, plan.content) if before else ["no plan was stored before"]
        amendments = (*amendments, Amendment(declared=now, tested_cells=len(tested), changes=tuple(changes)))
    keeps_date = before is not None and (tested or not is_changed)
    record = PlanRecord(
        stamp=run.stamp(),
        declared=before.declared if before is not None and keeps_date else now,
        sha256=plan.sha256,
        document=plan.document,
        content=plan.content,
        amendments=amendments,
    )
    write_record(Study(root).plan_json, record)
    return record
