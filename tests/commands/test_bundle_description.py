"""`model.json` of a bundle: what chestx and the bundle's script both refuse, both read, and both say of the model."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import chestx_cli
from chestx_cli.commands.predict import WITHOUT_CAVEATS
from chestx_cli.core.errors import IntegrityError
from chestx_cli.data.images.decoding import decode_grey
from chestx_cli.inference.bundles import COPY_AGAIN, read_bundle
from chestx_cli.inference.predictor import predictor_of_bundle
from chestx_cli.records.preprocessing import Preprocessing
from chestx_cli.records.variant import require_decision
from chestx_cli.store.directory import Study
from conftest import Chestx, edit
from support.bundle_script import exported_baseline, loaded_script, run_script

ABSENT = object()
# Is written as 1e999, which Python reads as infinity.
TOO_LARGE = "\0"
NO_NUMBERS: tuple[Any, ...] = (None, True, "x", "NaN", "0.5", [], {}, math.nan, math.inf, TOO_LARGE)
BAD: dict[str, tuple[Any, ...]] = {
    "threshold": (ABSENT, *NO_NUMBERS, -1, 2, -1e-9, 1.0000001, 10**400),
    "temperature": (ABSENT, *NO_NUMBERS, -1, 0, 1e-300, 1e300, 10**400),
    "labels": (ABSENT, *NO_NUMBERS, ["NORMAL"], ["PNEUMONIA"] * 2, ["NORMAL", "PNEUMONIA", "x"], ["NORMAL", 1]),
    "positive": (ABSENT, None, 1, [], "x"),
    "preprocessing": (ABSENT, None, 1, "x", []),
    "preprocessing.version": (ABSENT, *NO_NUMBERS, 4.5),
    "preprocessing.image_size_px": (ABSENT, *NO_NUMBERS, 0, -5, 64.5, 4097, 10**8, 1e8),
    "preprocessing.mean": (ABSENT, *NO_NUMBERS, 0.5, [0.5] * 2, [0.5] * 4, [0.5, 0.5, "0.5"], [0.5, 0.5, 1e300]),
    "preprocessing.std": (
        *(ABSENT, *NO_NUMBERS, 0.5, [0, 0, 0], [0.5] * 2, [0.5] * 4, [0.5, 0.5, "0.5"], [0.5, 0.5, -0.5]),
        *([0.5, 0.5, None], [0.5, 0.5, math.nan], [0.5, 0.5, 1e-300], [0.5, 0.5, 1e300]),
    ),
    "preprocessing.value_bits": (*NO_NUMBERS, 7, 17, 12.5),
    "preprocessing.resize": (None, 1, [], "stretch"),
    "preprocessing.window": (1, [], "", " "),
    "preprocessing.lateral": (1, "x", []),
    "model": (ABSENT, None, 1, "x", []),
    "model.file": (ABSENT, None, 1, [], "", "..", "../model.onnx", "/model.onnx", "other.onnx"),
    "model.sha256": (ABSENT, None, 1, []),
    "model.size_bytes": (ABSENT, *NO_NUMBERS, -1, 0, 1e14, 10**14, 1.5),
    "variant": (ABSENT, None, 1, []),
    "made_by": (None, 1, []),
    "cost": (ABSENT, None, 1, []),
    "cost.model_sha256": (None, 1, []),
    "caveats": (1, "UNPROVEN: x", [1], {}),
}
GOOD: dict[str, tuple[Any, ...]] = {
    "threshold": (0, 1, 0.5, 1e-9),
    "temperature": (1, 0.05, 20),
    "preprocessing.version": (3,),
    "preprocessing.image_size_px": (1, 4096),
    "preprocessing.mean": ([0, 0, 0], [0.5, -0.5, 1]),
    "preprocessing.std": ([1, 1, 1],),
    "preprocessing.value_bits": (8, 12, 16, ABSENT),
    "preprocessing.resize": ("letterbox", "center-crop", ABSENT),
    "preprocessing.window": ("2", "LUNG", None, ABSENT),
    "preprocessing.lateral": (True, False, None, ABSENT),
    "model.file": ("model.onnx.zst",),
    "model.size_bytes": (1, 2**31 - 1),
    "caveats": ([], ["UNPROVEN: x"], None, ABSENT),
}


@pytest.fixture(scope="module")
def bundle(chestx: Chestx, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of the baseline; tests must not change it."""
    return exported_baseline(chestx, finished, tmp_path_factory.mktemp("described"))


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Return an image that can be read."""
    path = tmp_path / "film.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (53, 47), dtype=np.uint8)).save(path)
    return path


def described(bundle: Path, folder: Path, changes: dict[str, Any]) -> Path:
    """Return a folder with the description of a bundle, of which fields were changed."""
    document = json.loads((bundle / "model.json").read_text())
    for field, value in changes.items():
        *above, last = field.split(".")
        part = document
        for name in above:
            part = part[name]
        if value is ABSENT:
            del part[last]
        else:
            part[last] = value
    folder.mkdir(exist_ok=True)
    (folder / "model.json").write_text(json.dumps(document).replace(json.dumps(TOO_LARGE), "1e999"))
    return folder


def changed(bundle: Path, folder: Path, **changes: Any) -> Path:
    """Return a copy of a bundle of which fields of the description, named with `__` for a point, were changed."""
    shutil.copytree(bundle, folder)
    return described(bundle, folder, {name.replace("__", "."): value for name, value in changes.items()})


def refusals(script: ModuleType, folder: Path) -> tuple[str, str]:
    """Return what chestx and the script say about a description that they refuse, with the remedy; empty if read."""
    here = there = ""
    try:
        read_bundle(folder)
    except IntegrityError as error:
        here = str(error)
    try:
        script.read_description(folder)
    except script.BundleError as error:
        there = f"{error.fact}; {error.remedy}"
    return here, there


@pytest.mark.parametrize("field", BAD)
def test_both_readers_refuse_the_same_values(bundle: Path, tmp_path: Path, field: str) -> None:
    for value in BAD[field]:
        here, there = refusals(loaded_script(), described(bundle, tmp_path / "bundle", {field: value}))
        for said in (here, there):
            assert "model.json is " in said, (value, said)
            assert said.endswith(COPY_AGAIN), (value, said)


@pytest.mark.parametrize("field", GOOD)
def test_both_readers_read_the_same_values(bundle: Path, tmp_path: Path, field: str) -> None:
    for value in GOOD[field]:
        changes = {field: value}
        assert refusals(loaded_script(), described(bundle, tmp_path / "bundle", changes)) == ("", ""), value


def test_whatever_is_in_a_field_both_readers_agree(bundle: Path, tmp_path: Path) -> None:
    script = loaded_script()
    values = list(itertools.chain(*BAD.values(), *GOOD.values()))
    rng = np.random.default_rng(1)
    for field in script.RULES:
        for at in rng.permutation(len(values))[:40]:
            if values[at] is ABSENT:
                continue
            here, there = refusals(script, described(bundle, tmp_path / "bundle", {field: values[at]}))
            assert bool(here) == bool(there), (field, values[at], here, there)


@pytest.mark.parametrize(("version", "age"), [(1, "older"), (5, "newer")])
def test_both_readers_refuse_preprocessing_that_they_do_not_know(
    bundle: Path, tmp_path: Path, version: int, age: str
) -> None:
    changes = {"preprocessing.version": version}
    here, there = refusals(loaded_script(), described(bundle, tmp_path / "bundle", changes))
    assert f"was made by an {age}" in here or f"was made by a {age}" in here
    assert there == f"this script is older than the model beside it; {COPY_AGAIN}"


@pytest.mark.parametrize(
    "changes",
    [
        {"preprocessing.version": 3, "preprocessing.resize": "letterbox"},
        {"preprocessing.version": 2, "preprocessing.value_bits": 12},
    ],
)
def test_both_readers_refuse_values_that_do_not_go_together(
    bundle: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    for said in refusals(loaded_script(), described(bundle, tmp_path / "bundle", changes)):
        assert "model.json is damaged" in said
        assert said.endswith(COPY_AGAIN)


@pytest.mark.parametrize("text", ["[]", "null", "1", '"x"', "", "{}", "[" * 10**5, '{"schema": "chestx.bundle/1"}'])
def test_both_readers_refuse_what_is_no_description(bundle: Path, tmp_path: Path, text: str) -> None:
    own = described(bundle, tmp_path / "bundle", {})
    (own / "model.json").write_text(text)
    assert all(said.endswith(COPY_AGAIN) for said in refusals(loaded_script(), own))


def test_the_limits_of_the_script_are_those_of_chestx(bundle: Path) -> None:
    """Fields that only one of them knows would not be compared."""
    document = json.loads((bundle / "model.json").read_text())
    described_by = {
        f"{part}.{name}" if part else name
        for part, fields in (("", document), ("preprocessing", document["preprocessing"]), ("model", document["model"]))
        for name in fields
    }
    rules = set(loaded_script().RULES)
    assert rules - {"cost.model_sha256"} <= described_by
    assert {f"preprocessing.{name}" for name in Preprocessing.__dataclass_fields__} <= rules
    assert {f"model.{name}" for name in document["model"]} <= rules


@pytest.mark.parametrize("field", ["threshold", "temperature"])
def test_a_variant_is_held_to_the_same_check(finished: Path, field: str) -> None:
    record = Study(finished).read_variant("baseline")
    for value in (math.nan, math.inf, -1.0, 1e300):
        with pytest.raises(ValueError, match=f"a {field} of"):
            record.replace(**{field: value})
    for classes in (("A",), ("A", "A"), ("B", "C"), ("A", "B", "C")):
        with pytest.raises(ValueError, match="not one of two"):
            require_decision(classes, "A", 0.5, 1.0)


def test_a_damaged_description_ends_both_commands(chestx: Chestx, bundle: Path, film: Path, tmp_path: Path) -> None:
    own = changed(bundle, tmp_path / "own", preprocessing__std=[0, 0, 0])
    here, there = chestx("predict", film, "--bundle", own), run_script(own, "predict", film)
    assert (here.code, there.returncode) == (1, 1)
    assert "model.json is damaged at preprocessing: a mean or standard deviation" in here.err
    assert there.stderr == f"error: model.json is damaged at preprocessing.std: [0, 0, 0]\n  {COPY_AGAIN}\n"
    assert here.out + there.stdout == ""


def test_another_image_size_than_the_models_ends_both_commands(
    chestx: Chestx, bundle: Path, film: Path, tmp_path: Path
) -> None:
    own = changed(bundle, tmp_path / "own", preprocessing__image_size_px=128)
    here = chestx("predict", film, "--bundle", own)
    assert here.code == 1
    assert "model.onnx is refused" in here.err
    assert COPY_AGAIN in here.err
    for words in (("predict", film), ("benchmark", "--rounds", 1, "--duration", 0.01)):
        there = run_script(own, *words)
        assert there.returncode == 1
        assert "model.json says 2 classes from images of 128 px" in there.stderr
        assert COPY_AGAIN in there.stderr
        assert "Traceback" not in there.stderr


def test_no_label_is_made_of_logits_that_are_not_finite(bundle: Path, film: Path) -> None:
    predictor, _ = predictor_of_bundle(bundle)
    for value in (math.nan, math.inf):
        logits = np.array([[value, 0.5]], dtype=np.float32)
        with pytest.raises(IntegrityError, match="not finite; copy the whole bundle again"):
            list(predictor.predictions(lambda _: logits, [film], decode_grey))  # noqa: B023 - used at once
        script = loaded_script()
        with pytest.raises(script.BundleError, match="not finite"):
            script.probability_of_positive(logits, script.read_description(bundle))


@pytest.mark.parametrize("variant", ["baseline", "dynamic-int8"])
def test_a_bundle_and_python_say_of_a_model_what_the_study_says(
    chestx: Chestx, study: Path, film: Path, tmp_path: Path, variant: str
) -> None:
    def stale(content: bytes) -> bytes:
        return json.dumps({**json.loads(content), "parent_sha256": "0" * 64}).encode()

    stamps = ["UNPROVEN"]
    if variant != "baseline":
        edit(study / "variants" / variant / "variant.json", stale)
        stamps += ["STALE"]
    out = tmp_path / "bundle"
    assert chestx("export", variant, "--study", study, "--out", out, "--anyway").code == 0
    of_study = chestx("predict", film, "--study", study, "--variant", variant, "--json").json()
    of_bundle = chestx("predict", film, "--bundle", out, "--json").json()
    said = [[note for note in record["notes"] if note.startswith(tuple(stamps))] for record in (of_study, of_bundle)]
    assert said[0] == said[1]
    assert [record["stamp"]["data_stamps"] for record in (of_study, of_bundle)] == [stamps, stamps]
    in_python = chestx_cli.open_study(study).variant(variant).predict(film)
    assert (list(in_python.notes), list(in_python.stamp.data_stamps)) == (said[0], stamps)
    shown = chestx("predict", film, "--bundle", out)
    assert ", ".join(stamps) in shown.out.splitlines()
    done = run_script(out, "predict", film)
    document = json.loads(done.stdout)
    assert (document["data_stamps"], document["caveats"]) == (stamps, said[0])
    assert [line for line in done.stderr.splitlines() if line.startswith("warning: ")] == [
        f"warning: {caveat}" for caveat in said[0]
    ]
    assert run_script(out, "predict", "--csv", film).stderr.startswith(f"warning: {said[0][0]}\n")
    timed = json.loads(run_script(out, "benchmark", "--rounds", 1, "--duration", 0.01).stdout)
    assert timed["stamp"]["data_stamps"] == stamps
    assert set(said[0]) <= set(timed["notes"])


def test_an_older_bundle_is_read_and_does_not_say(chestx: Chestx, bundle: Path, film: Path, tmp_path: Path) -> None:
    own = changed(bundle, tmp_path / "own", caveats=ABSENT)
    record = chestx("predict", film, "--bundle", own, "--json").json()
    assert record["notes"][0] == WITHOUT_CAVEATS
    assert record["stamp"]["data_stamps"] == []
    done = run_script(own, "predict", film)
    assert (done.returncode, json.loads(done.stdout)["caveats"]) == (0, [])
