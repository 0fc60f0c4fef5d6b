"""The stored results of a study, refused where its plan or its cells have changed since."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.cells.declaring import plan_in, stored_plan
from chestx_cli.cells.pooling import Pooled, pool
from chestx_cli.core.errors import StudyError
from chestx_cli.records.cells import PlanRecord, PooledRow, StudyRecord
from chestx_cli.store.directory import Study
from chestx_cli.store.documents import read_record

if TYPE_CHECKING:
    from chestx_cli.cells.plan import Stages


def read_answered(root: Path, stages: Stages) -> tuple[StudyRecord, PlanRecord, Pooled]:
    """Return a study's stored results, its plan, and its cells, pooled again.

    Raises StudyError if the study is not finished, a cell failed, or plan or cells have changed since.
    """
    stored, path = stored_plan(root), Study(root).study_json
    if stored is None:
        raise StudyError(f"no plan in {root}/", 'name the images: "chestx study DATA"')
    if not path.exists():
        raise StudyError(f"{root}/ has a plan and no results yet", 'run "chestx study" first')
    record = read_record(StudyRecord, path)
    if record.failures:
        named = ", ".join(dict.fromkeys(failure.cell for failure in record.failures))
        raise StudyError(f"the study is not complete: {named} failed", 'run "chestx study" to go on')
    if record.plan_sha256 != stored.sha256:
        raise StudyError(f"the plan of {root}/ has changed since its results", 'run "chestx study" to renew them')
    pooled = pool(plan_in(root, stages), root.resolve(), stages)
    if pooled.inputs != record.stamp.inputs or _costs(pooled.rows) != _costs(record.rows):
        raise StudyError(f"cells of {root}/ have changed since its results", 'run "chestx study" to renew them')
    return record, stored, pooled


def _costs(rows: Sequence[PooledRow]) -> list[tuple[object, ...]]:
    """Return the benchmark values of rows, for which no hash is stored."""
    return [(row.variant, row.size_bytes, row.latency_p50_ms, row.speedup, row.speedup_interval) for row in rows]
