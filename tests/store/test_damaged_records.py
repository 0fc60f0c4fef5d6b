"""A damaged record is refused with the file, the place and a command that cures it; others do not suffer from it."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import annotated_types
import pytest

from chestx_cli.core.errors import IntegrityError
from chestx_cli.core.record import Record
from chestx_cli.records.benchmark import BenchmarkRecord
from chestx_cli.records.evaluation import EvaluationRecord
from chestx_cli.records.sensitivity import SensitivityRecord
from chestx_cli.records.variant import VariantRecord
from chestx_cli.store.documents import read_record
from conftest import Chestx, edit

Place = tuple[str | int, ...]
FILES: dict[str, type[Record]] = {
    "benchmark.cpu": BenchmarkRecord,
    "evaluation.test": EvaluationRecord,
    "sensitivity": SensitivityRecord,
    "variant": VariantRecord,
}
QUICK = {"chestx benchmark": "--rounds 1 --duration 0.02", "chestx sensitivity": "--amounts 0.5"}


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def misfit(content: bytes) -> bytes:
    return json.dumps({**json.loads(content), "notes": 5}).encode()


def foreign(content: bytes) -> bytes:
    return json.dumps({**json.loads(content), "schema": "another/1"}).encode()


@pytest.mark.parametrize("damage", [truncated, misfit, foreign])
@pytest.mark.parametrize("file", FILES)
def test_the_command_that_is_named_cures_it(
    chestx: Chestx, study: Path, file: str, damage: Callable[[bytes], bytes]
) -> None:
    variant = "baseline" if file == "sensitivity" else "oneshot-50"
    edit(study / "variants" / variant / f"{file}.json", damage)
    refused = chestx("report", "--study", study)
    assert refused.code == 1
    error = " ".join(refused.err.partition("error: ")[2].split())
    assert f"{variant}/{file}.json" in error
    command = re.search(r'"chestx ([^"]+)"', error)
    if command is None:
        # Nothing in it can be read.
        assert (file, damage) == ("variant", truncated)
        assert "run the command that made it again with --name oneshot-50 --force" in error
        words = ["prune", "--name", "oneshot-50", "--force", "--study", str(study)]
    else:
        words = shlex.split(command[1])
    quick = next((more for begin, more in QUICK.items() if begin.split()[1] == words[0]), "")
    cured = chestx(*words, *quick.split())
    assert cured.code == 0, cured.err
    assert chestx("report", "--study", study).code == 0


def test_damaged_results_of_a_variant_do_not_stop_commands_about_others(
    chestx: Chestx, study: Path, data: Path, tmp_path: Path
) -> None:
    for file in ("evaluation.test", "benchmark.cpu"):
        edit(study / "variants" / "oneshot-50" / f"{file}.json", truncated)
    shown = chestx("status", "--study", study, "--json")
    assert shown.code == 0, shown.err
    (row,) = (row for row in shown.json()["rows"] if row["variant"] == "oneshot-50")
    assert (row["tested"], row["timed"]) == ("outdated", "outdated")
    assert {row["command"] for row in shown.json()["renewals"]} == {"chestx evaluate", "chestx benchmark"}
    said = " ".join(shown.err.split())
    assert "oneshot-50/evaluation.test.json is not JSON" in said
    assert f'run "chestx benchmark --study {study}" again, or remove the file' in said
    for words in (
        ("evaluate", "baseline", "dynamic-int8"),
        ("benchmark", "baseline", "dynamic-int8", *QUICK["chestx benchmark"].split()),
        ("predict", data / "NORMAL", "--variant", "baseline"),
        ("export", "baseline", "--out", tmp_path / "bundle"),
    ):
        outcome = chestx(*words, "--study", study)
        assert outcome.code == 0, outcome.err
    # What a command needs is not left out.
    for needs in (("export", "oneshot-50", "--out", tmp_path / "other"), ("compare", "baseline", "oneshot-50")):
        assert chestx(*needs, "--study", study).code == 1


def ranged(kind: Any, document: Any, place: Place = ()) -> Iterator[tuple[Place, annotated_types.BaseMetadata]]:
    """Yield the place of every number of a document whose field has a range, with each bound of the range."""
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Annotated:
        yield from ((place, bound) for bound in parts[1:])
    elif dataclasses.is_dataclass(kind) and isinstance(document, dict):
        hints = typing.get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(typing.cast("Any", kind)):
            if field.name in document:
                yield from ranged(hints[field.name], document[field.name], (*place, field.name))
    elif isinstance(document, list):
        if document:
            yield from ranged(parts[0], document[0], (*place, 0))
    elif document is not None:
        for part in parts:
            yield from ranged(part, document, place)


def beyond(bound: annotated_types.BaseMetadata) -> float | str:
    match bound:
        case annotated_types.Gt(gt=limit):
            return typing.cast("float", limit)
        case annotated_types.Ge(ge=limit):
            return typing.cast("float", limit) - 1
        case annotated_types.Le(le=limit):
            return typing.cast("float", limit) + 1
        case _:
            return "Infinity"


@pytest.mark.parametrize("file", FILES)
def test_numbers_that_cannot_be_are_refused(finished: Path, tmp_path: Path, file: str) -> None:
    source = finished / "variants" / ("baseline" if file == "sensitivity" else "oneshot-50") / f"{file}.json"
    path = tmp_path / "variants" / "a" / "record.json"
    path.parent.mkdir(parents=True)
    places = dict(ranged(FILES[file], json.loads(source.read_text())))
    assert len(places) >= 5
    for place, bound in ranged(FILES[file], json.loads(source.read_text())):
        for number in (beyond(bound), "NaN"):
            document = json.loads(source.read_text())
            part = document
            for step in place[:-1]:
                part = part[step]
            part[place[-1]] = number
            path.write_text(json.dumps(document))
            where = r"\.".join(map(str, place))
            with pytest.raises(IntegrityError, match=rf"is damaged at {where}"):
                read_record(FILES[file], path)


@pytest.mark.parametrize(
    ("file", "place"),
    [
        ("benchmark.cpu", ("rows", 0, "batches", 0, "round_p50_ms", 0)),
        ("benchmark.cpu", ("rows", 0, "latency_p50_ms")),
        ("benchmark.cpu", ("cost_rows", 0, "model_bytes")),
        ("evaluation.test", ("comparisons", 0, "p_margin")),
        ("evaluation.test", ("rows", 0, "accuracy")),
        ("variant", ("model_bytes",)),
        ("variant", ("macs",)),
    ],
)
def test_what_decides_has_a_range(finished: Path, file: str, place: Place) -> None:
    document = json.loads((finished / "variants" / "oneshot-50" / f"{file}.json").read_text())
    assert place in dict(ranged(FILES[file], document))


def test_a_file_too_small_for_its_parameters_is_refused(study: Path) -> None:
    path = study / "variants" / "baseline" / "variant.json"
    edit(path, lambda content: re.sub(rb'"model_bytes": \d+', b'"model_bytes": 5', content))
    with pytest.raises(IntegrityError, match="a model_bytes of 5, too few for"):
        read_record(VariantRecord, path)
