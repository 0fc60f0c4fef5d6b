"""Every record survives a JSON round trip, for all kinds of fields and unusual values."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chestx_cli.core.errors import IntegrityError
from chestx_cli.core.record import Record, Stamp
from chestx_cli.records import benchmark, sensitivity, variant
from chestx_cli.records.preprocessing import Preprocessing
from chestx_cli.records.variant import MODEL_FILES, VariantRecord
from chestx_cli.store.documents import read_record, write_record

KINDS = sorted(
    {
        kind
        for module in (variant, sensitivity, benchmark)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Record) and "schema" in vars(kind)
    },
    key=lambda kind: kind.__name__,
)
# Texts of any characters but halves of them, which no file can hold; numbers that are none among the floats.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
FLOATS = st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.just(math.nan))
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), TEXT)

st.register_type_strategy(str, TEXT)
st.register_type_strategy(float, FLOATS)
st.register_type_strategy(Preprocessing, st.just(Preprocessing()))
st.register_type_strategy(Stamp, st.builds(Stamp, options=st.dictionaries(TEXT, PLAIN, max_size=2)))


def drawn(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Return values of a record's kind; those of variants are such that a model can be used with them."""
    known: dict[str, Any] = {
        field.name: st.dictionaries(TEXT, PLAIN, max_size=2)
        for field in dataclasses.fields(kind)
        if field.name == "options"
    }
    if kind is VariantRecord:
        known |= {"kind": st.just("torch"), "model_file": st.just(MODEL_FILES["torch"])}
        known |= {"classes": st.just(("A", "B")), "positive": st.sampled_from(["A", "B"])}
        known |= {"threshold": st.floats(0, 1), "temperature": st.floats(0.1, 10)}
        known |= {"parameters": st.integers(0, 200), "model_bytes": st.integers(100, 10**9)}
    return st.builds(kind, **known)


def same(a: Any, b: Any) -> bool:
    """Return whether two values are equal, NaN being equal to itself."""
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return (isinstance(a, float) and math.isnan(a) and isinstance(b, float) and math.isnan(b)) or a == b


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_record_is_read_as_it_was_written(kind: type[Record], tmp_path: Path, data: st.DataObject) -> None:
    record = data.draw(drawn(kind))
    path = tmp_path / "record.json"
    write_record(path, record)
    json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert same(read_record(kind, path), record)


def test_epochs_of_older_variants_are_read_with_their_metrics_by_name(study: Path) -> None:
    path = study / "variants" / "baseline" / "variant.json"
    now = read_record(VariantRecord, path)
    document = json.loads(path.read_text())
    document["schema"] = "chestx.variant/1"
    for row in document["training"]["epochs"]:
        for part in ("train", "val"):
            row.update({f"{part}_{name}": value for name, value in row.pop(part).items()})
    path.unlink()
    path.write_text(json.dumps(document))
    assert read_record(VariantRecord, path) == now
    document["training"]["epochs"][0] = 7
    path.write_text(json.dumps(document))
    with pytest.raises(IntegrityError, match=r"is damaged at training\.epochs\.0"):
        read_record(VariantRecord, path)
