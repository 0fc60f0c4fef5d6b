"""A stored result of a search is read, also one from before it had an objective, folds and short fits."""

from __future__ import annotations

import json
from pathlib import Path

from chestx_cli.core.record import Stamp
from chestx_cli.records.commands import CompressRecord, CompressRow, ShortFitRow
from chestx_cli.store.documents import read_record, write_record

ADDED = ("objective", "endpoint", "runtime", "folds", "short_fits")
ADDED_TO_ROWS = ("student", "dropped", "drop", "drop_interval", "front_share", "energy_mj")


def result() -> CompressRecord:
    row = CompressRow(
        variant="mobilenet_v3_small-student-8",
        criterion=None,
        int8=None,
        macs_removed=0.98,
        latency_p50_ms=3.2,
        speedup=12.0,
        size_mb=6.1,
        accuracy=0.95,
        accuracy_interval=(0.9, 0.98),
        lost=2,
        won=1,
        difference=-0.01,
        difference_interval=(-0.04, 0.02),
        p=1.0,
        auroc=0.99,
        auroc_difference=-0.002,
        loss=0.1,
        is_on_front=True,
        missed=(),
        model_sha256="0" * 64,
        student="mobilenet_v3_small",
        dropped="accuracy",
        drop=0.01,
        drop_interval=(-0.02, 0.04),
        front_share=0.93,
        energy_mj=41.5,
    )
    return CompressRecord(
        stamp=Stamp(command="chestx compress", options={}, inputs={}, environment={}, created="", duration_s=1.0),
        parent="baseline",
        images=285,
        patients=200,
        threads=2,
        max_latency_ms=None,
        max_size_mb=None,
        max_drop=0.02,
        chosen=row.variant,
        nearest=None,
        rows=(row,),
        objective="energy",
        endpoint="auroc",
        runtime="openvino",
        folds=("fold-1", "fold-2"),
        short_fits=(ShortFitRow(network="student", epochs=2, loss=0.2, accuracy=0.9, drop=0.03, fell=("AUROC",)),),
    )


def test_a_search_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_record(tmp_path / "search.json", result())
    assert read_record(CompressRecord, tmp_path / "search.json") == result()
    assert result().headline == "mobilenet_v3_small-student-8 meets all limits with the least energy"


def test_a_search_of_before_is_read(tmp_path: Path) -> None:
    document = json.loads(result().to_json())
    for name in ADDED:
        del document[name]
    for name in ADDED_TO_ROWS:
        del document["rows"][0][name]
    path = tmp_path / "search.json"
    path.write_text(json.dumps(document))
    read = read_record(CompressRecord, path)
    assert (read.objective, read.endpoint, read.runtime, read.folds, read.short_fits) == (
        None,
        None,
        "onnxruntime",
        (),
        (),
    )
    assert read.rows[0].front_share is None
    assert read.rows[0].variant == result().rows[0].variant
    assert read.headline == "mobilenet_v3_small-student-8 meets all limits"
