"""`chestx predict`: the same probabilities as evaluate, Python and a bundle; CSV files, resumed and extended."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import chestx_cli
from chestx_cli.commands import predict as command
from chestx_cli.core.errors import UsageError
from chestx_cli.core.files import open_to_append
from chestx_cli.core.record import NOT_A_DEVICE
from chestx_cli.data.images.decoding import decode_grey
from chestx_cli.evaluation.reading import read_study
from chestx_cli.inference.predictions_file import heading_of, record_file
from chestx_cli.inference.runtimes import PREDICT_BATCH
from chestx_cli.records.answers import Decision
from chestx_cli.records.prediction import PredictRecord
from chestx_cli.reporting.decision import decide
from chestx_cli.reporting.prediction_answer import SHOWN_PREDICTIONS
from chestx_cli.store.directory import Study
from chestx_cli.store.documents import read_record
from conftest import Chestx, edit, run_chestx, tree, write_images
from support.bundle_script import run_script

POSITIVE = "PNEUMONIA"
KINDS = ("baseline", "oneshot-50", "structured-30", "dynamic-int8", "static-int8")
# Tolerances of a probability. Within one runtime only the batch sizes differ.
SAME_RUNTIME, OTHER_RUNTIME = 1e-6, 1e-5


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return images that no variant has seen; tests must not change them."""
    return write_images(tmp_path_factory.mktemp("new") / "films", n_normal=21, n_pneumonia=19, first=700)


@pytest.fixture(scope="module")
def whole(finished: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a study with variants of every kind, a threshold and a temperature of each, evaluated on new images."""
    study = tmp_path_factory.mktemp("predicting") / "study"
    shutil.copytree(finished, study, copy_function=os.link)
    at = ("--study", study)
    commands: list[tuple[object, ...]] = [
        ("prune", *at, "--method", "structured", "--amount", "0.3", "--finetune-epochs", 0, "--name", "structured-30"),
        ("quantize", *at, "--method", "static"),
        ("evaluate", *at, "--operating-point", "youden", "--temperature"),
        ("evaluate", *at, "--data", other, "--name", "new"),
    ]
    for words in commands:
        outcome = run_chestx(*words)
        assert outcome.code == 0, f"{words}\n{outcome.err}"
    return study


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"))


def by_evaluate(study: Path, other: Path, variant: str) -> dict[str, float]:
    """Return the probabilities that `evaluate --data` has stored, by path."""
    with (study / "images.new.csv").open() as listed:
        path_of = {row["image_id"]: row["path"] for row in csv.DictReader(listed)}
    with (study / "variants" / variant / "predictions.new.csv").open() as stored:
        return {str(other / path_of[row["image_id"]]): float(row["probability"]) for row in csv.DictReader(stored)}


def by_path(record: PredictRecord) -> dict[str, float]:
    return {str(row.path): probability_of(row.probability) for row in record.rows}


def probability_of(probability: Any) -> float:
    (value,) = probability.values()
    assert list(probability) == [POSITIVE]
    assert value is not None
    return float(value)


@pytest.mark.parametrize("variant", KINDS)
def test_every_way_gives_the_same_probabilities(
    chestx: Chestx, whole: Path, other: Path, tmp_path: Path, variant: str
) -> None:
    expected = by_evaluate(whole, other, variant)
    at = ("--study", whole)
    files = files_of(other)
    assert len(expected) == len(files) > PREDICT_BATCH
    out, table = tmp_path / "bundle", tmp_path / "p.csv"
    assert chestx("export", variant, *at, "--out", out, "--anyway").code == 0
    assert chestx("predict", other, *at, "--variant", variant, "--csv", table).code == 0
    with table.open() as written:
        in_file = {row["path"]: float(row[f"probability_{POSITIVE}"]) for row in csv.DictReader(written)}
    model = chestx_cli.open_study(whole).variant(variant)
    arrays = [np.asarray(Image.open(path)) for path in files]
    one_by_one = {str(path): probability_of(model.predict(path).rows[0].probability) for path in files[:3]}
    from_bundle = chestx_cli.predict((other,), bundle=out, show_paths=True)
    ways = {
        "command": (by_path(chestx_cli.predict((other,), variant=variant, study=whole, show_paths=True)), SAME_RUNTIME),
        "file": (in_file, SAME_RUNTIME),
        "opened study": (by_path(model.predict(other)), SAME_RUNTIME),
        "one by one": (one_by_one, SAME_RUNTIME),
        "arrays": (
            dict(
                zip(map(str, files), (probability_of(r.probability) for r in model.predict(arrays).rows), strict=True)
            ),
            SAME_RUNTIME,
        ),
        "bundle": (by_path(from_bundle), OTHER_RUNTIME),
        "script": (
            {row["path"]: row["probability"] for row in json.loads(run_script(out, "predict", other).stdout)["images"]},
            OTHER_RUNTIME,
        ),
    }
    for way, (found, tolerance) in ways.items():
        assert found, way
        for path, probability in found.items():
            assert probability == pytest.approx(expected[path], abs=tolerance), (way, path)
        assert len(found) == (3 if way == "one by one" else len(files)), way
    stored = Study(whole).read_variant(variant)
    assert (from_bundle.threshold, from_bundle.temperature) == (stored.threshold, stored.temperature)
    for row in from_bundle.rows:
        assert row.decision == (POSITIVE if probability_of(row.probability) >= stored.threshold else "NORMAL")
        assert row.distance_to_threshold == probability_of(row.probability) - stored.threshold


def test_an_int8_variant_predicts_without_torch(whole: Path, other: Path) -> None:
    words = ["predict", str(files_of(other)[0]), "--variant", "static-int8", "--study", str(whole), "--json"]
    code = (
        f"import sys\nsys.argv = ['chestx', *{words!r}]\nfrom chestx_cli.cli.main import main\n"
        "try: main()\nexcept SystemExit as done: assert not done.code\n"
        "print('loaded:', *({'torch', 'torchvision', 'pandas', 'scipy', 'sklearn', 'matplotlib'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    document, _, loaded = done.stdout.rpartition("loaded:")
    assert json.loads(document)["images"] == 1
    assert loaded.split() == []


@pytest.fixture
def study(whole: Path, tmp_path: Path) -> Path:
    """Return a copy of the study, which a test may change."""
    shutil.copytree(whole, tmp_path / "study", copy_function=os.link)
    return tmp_path / "study"


def test_a_run_that_was_stopped_continues_where_it_stopped(
    chestx: Chestx, study: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "p.csv"
    words = ("predict", other, "--study", study, "--variant", "static-int8", "--csv", table, "--threads", 1)
    first = chestx(*words, "--json").json()
    complete = table.read_text()
    assert complete.splitlines()[0] == ",".join(heading_of(POSITIVE))
    # A line cut by a kill is discarded.
    kept = 7
    lines = complete.splitlines(keepends=True)
    table.write_text("".join(lines[: kept + 1]) + lines[kept + 1][:9])
    decoded: list[Path] = []
    real = decode_grey

    def counting(path: Path, *rest: Any) -> Any:
        decoded.append(path)
        return real(path, *rest)

    monkeypatch.setattr(command, "decode_grey", counting)
    again = chestx(*words, "--json").json()
    assert len(decoded) == len(files_of(other)) - kept
    assert (again["images"], again["resumed"], again["called"]) == (first["images"], kept, first["called"])
    assert again["rows"] == first["rows"]
    rows, expected = (list(csv.DictReader(text.splitlines())) for text in (table.read_text(), complete))
    for found, one in zip(rows, expected, strict=True):
        assert (found["image_id"], found["path"]) == (one["image_id"], one["path"])
        assert float(found[f"probability_{POSITIVE}"]) == pytest.approx(float(one[f"probability_{POSITIVE}"]), abs=1e-6)
    # With all rows present, nothing is decoded and no model is opened.
    decoded.clear()
    monkeypatch.setattr("chestx_cli.inference.predictor.open_file", lambda *_, **__: pytest.fail("opened"))
    assert chestx(*words, "--json").json()["resumed"] == len(files_of(other))
    assert decoded == []


def test_a_kill_leaves_every_finished_batch(study: Path, other: Path, tmp_path: Path) -> None:
    table = tmp_path / "p.csv"
    words = ["predict", str(other), "--study", str(study), "--variant", "static-int8", "--csv", str(table)]
    code = (
        "import os, sys\nfrom chestx_cli.inference import predictions_file as kept\nreal = kept.append_lines\n"
        "def append(*arguments):\n    real(*arguments)\n    os._exit(9)\nkept.append_lines = append\n"
        f"sys.argv = ['chestx', *{words!r}]\nfrom chestx_cli.cli.main import main\nmain()"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert killed.returncode == 9, killed.stderr
    assert len(table.read_text().splitlines()) == 1 + PREDICT_BATCH
    record = chestx_cli.predict((other,), study=study, variant="static-int8", csv=table)
    assert (record.resumed, record.images) == (PREDICT_BATCH, len(files_of(other)))


def test_new_images_are_added_and_counts_are_of_the_whole_file(study: Path, other: Path, tmp_path: Path) -> None:
    own, table = tmp_path / "inbox", tmp_path / "p.csv"
    shutil.copytree(other, own)
    chestx_cli.predict((own,), study=study, csv=table)
    shutil.copy(files_of(own)[5], own / "0.png")
    record = chestx_cli.predict((own,), study=study, csv=table)
    assert (record.images, record.resumed) == (len(files_of(other)) + 1, len(files_of(other)))
    assert table.read_text().splitlines()[-1].startswith(f"image-{record.resumed:06d},{own / '0.png'},")
    assert sum(record.called.values()) == record.images
    assert read_record(PredictRecord, record_file(table)).images == record.images


def test_a_file_holds_predictions_of_one_model(chestx: Chestx, study: Path, other: Path, tmp_path: Path) -> None:
    table = tmp_path / "p.csv"
    words = ("predict", other, "--study", study, "--csv", table)
    assert chestx(*words, "--variant", "baseline").code == 0
    before = tree(tmp_path / "study"), table.read_bytes()
    refused = chestx(*words, "--variant", "static-int8")
    assert refused.code == 1
    assert "has predictions of another model (variant: baseline -> static-int8; model_sha256: " in refused.err
    edit(
        study / "variants" / "baseline" / "variant.json",
        lambda content: json.dumps({**json.loads(content), "threshold": 0.25}).encode(),
    )
    refused = chestx(*words, "--variant", "baseline")
    assert "threshold: " in refused.err
    assert table.read_bytes() == before[1]
    started_over = chestx(*words, "--variant", "static-int8", "--force", "--json").json()
    assert (started_over["resumed"], started_over["images"]) == (0, len(files_of(other)))
    assert len(table.read_text().splitlines()) == 1 + len(files_of(other))


def test_only_a_file_of_predictions_is_ever_replaced(chestx: Chestx, study: Path, other: Path, tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    table.write_text("path,label\nprecious,NORMAL\n")
    words = ("predict", other, "--study", study, "--csv", table)
    for more in ((), ("--force",)):
        refused = chestx(*words, *more)
        assert (refused.code, "is no file of predictions" in refused.err) == (1, True)
    assert table.read_text() == "path,label\nprecious,NORMAL\n"
    table.unlink()
    assert chestx(*words).code == 0
    edit(table, lambda content: content.replace(b",NORMAL,", b",HEALTHY,", 1))
    refused = chestx(*words)
    assert (refused.code, "was edited: line " in refused.err) == (1, True)
    record_file(table).write_text("{}")
    assert "is no chestx.predict record" in chestx(*words, "--force").err


def test_a_file_with_other_columns_is_not_called_edited(
    chestx: Chestx, study: Path, other: Path, tmp_path: Path
) -> None:
    table = tmp_path / "p.csv"
    words = ("predict", other, "--study", study, "--csv", table)
    assert chestx(*words).code == 0
    written = table.read_text()
    cases = {
        "it lacks doubts": [line.rpartition(",")[0] for line in written.splitlines()],
        "it has later": [f"{line},{'' if number else 'later'}" for number, line in enumerate(written.splitlines())],
    }
    for said, lines in cases.items():
        table.write_text("\n".join(lines) + "\n")
        refused = chestx(*words)
        assert refused.code == 1
        text = " ".join(refused.err.split())
        assert "does not have the columns that this version of chestx writes" in text
        assert said in text
        assert f'--csv {table} --force" predicts all images again' in text
        assert "was edited" not in text
    table.write_text("\n" + written.partition("\n")[2])
    assert "was edited: its heading differs" in chestx(*words).err
    assert chestx(*words, "--force").code == 0
    assert table.read_text().splitlines()[0] == written.splitlines()[0]


def test_an_unusable_place_of_a_file_is_named_with_its_option(
    chestx: Chestx, study: Path, other: Path, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("precious")
    outcome = chestx("predict", other, "--study", study, "--csv", tmp_path / "taken" / "p.csv")
    assert outcome.code == 1
    assert "choose another place with --csv" in " ".join(outcome.err.split())


def test_two_commands_never_append_to_one_file(chestx: Chestx, study: Path, other: Path, tmp_path: Path) -> None:
    table = tmp_path / "p.csv"
    words = ("predict", other, "--study", study, "--csv", table)
    assert chestx(*words).code == 0
    before = table.read_bytes()
    with open_to_append(table):
        refused = chestx(*words, "--force")
    assert (refused.code, "is being written by another process" in refused.err) == (1, True)
    assert table.read_bytes() == before


def test_a_bad_image_is_a_row_with_its_reason(chestx: Chestx, study: Path, other: Path, tmp_path: Path) -> None:
    own, table = tmp_path / "inbox", tmp_path / "p.csv"
    shutil.copytree(other, own)
    (own / "NORMAL" / "a-bad-one.png").write_bytes(b"no image at all")
    words = ("predict", own, "--study", study)
    outcome = chestx(*words, "--json")
    document = outcome.json()
    assert (outcome.code, document["unreadable"], document["images"]) == (1, 1, len(files_of(own)))
    (bad,) = [row for row in document["rows"] if row["problem"]]
    assert bad["problem"] == "wrong-format: not a PNG, JPEG, BMP, TIFF or WebP image"
    assert (bad["decision"], bad["distance_to_threshold"], bad["probability"]) == (None, None, {POSITIVE: None})
    shown = chestx(*words)
    assert "1 unreadable" in shown.out
    assert f"1 cannot be read, such as {bad['image_id']} (wrong-format: " in shown.out
    for _ in range(2):
        assert chestx(*words, "--csv", table).code == 1
    assert sum(row["problem"] != "" for row in csv.DictReader(table.read_text().splitlines())) == 1


def test_names_of_found_files_are_in_the_csv_alone(chestx: Chestx, study: Path, other: Path, tmp_path: Path) -> None:
    table, name = tmp_path / "p.csv", files_of(other)[0].name
    for words in (("--json",), ("--full",), ("--csv", table), ("--csv", table, "--json")):
        outcome = chestx("predict", other, "--study", study, *words)
        assert outcome.code == 0, outcome.err
        assert name not in outcome.out + outcome.err
        assert "image-000000" in outcome.out
    assert name in table.read_text()
    beside = record_file(table).read_text()
    assert name not in beside
    assert str(tmp_path) not in beside
    assert json.loads(beside)["stamp"]["command"] == "chestx predict IMAGE --study DIR --csv FILE"
    assert name in chestx("predict", other, "--study", study, "--show-paths").out
    # A path that was typed is shown.
    typed = chestx("predict", files_of(other)[0], "--study", study, "--json").json()
    assert typed["rows"][0]["path"] == str(files_of(other)[0])


def test_the_variant_to_ship_by_the_results_is_used(
    chestx: Chestx, study: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = files_of(other)[0]
    decision = decide(read_study(Study(study)).variants)
    record = chestx_cli.predict((film,), study=study)
    assert record.variant == decision.ship or (decision.ship is None and record.variant == "baseline")
    assert f"{record.chosen_because}." == decision.sentence
    shipped = Decision(ship="static-int8", nearest=None, sentence="Ship static-int8: small.", next_command="")
    monkeypatch.setattr("chestx_cli.reporting.decision.decide", lambda _: shipped)
    shown = " ".join(chestx("predict", film, "--study", study).out.split())
    assert "Model: static-int8. Why: Ship static-int8: small." in shown
    for stored in study.glob("variants/*/evaluation.test.json"):
        stored.unlink()
    record = chestx_cli.predict((film,), study=study)
    assert (record.variant, record.chosen_because) == ("baseline", "no variant is evaluated yet")


def test_the_answer_names_the_class_and_has_the_notice(chestx: Chestx, study: Path, other: Path) -> None:
    outcome = chestx("predict", other, "--study", study)
    lines = outcome.out.splitlines()
    assert lines[-1] == NOT_A_DEVICE
    assert f"Probability of {POSITIVE}" in outcome.out
    assert len([line for line in lines if re.match(r"image-\d{6} ", line)]) == SHOWN_PREDICTIONS
    assert f"{len(files_of(other))} images: " in outcome.out
    document = chestx("predict", other, "--study", study, "--json").json()
    assert document["notice"] == NOT_A_DEVICE
    assert document["positive"] == POSITIVE
    numbers = {name for row in document["rows"] for name, value in row.items() if isinstance(value, float)}
    assert numbers == {"distance_to_threshold"}
    assert "research_only" in ",".join(heading_of(POSITIVE))
    assert "research only" in chestx("predict", "--help").out


def test_files_folders_and_tables_are_predicted_together(
    chestx: Chestx, study: Path, other: Path, tmp_path: Path
) -> None:
    files = files_of(other)
    table = tmp_path / "list.csv"
    table.write_text("path\n" + "".join(f"{path}\n" for path in files[:2]))
    folder = tmp_path / "some"
    folder.mkdir()
    shutil.copy(files[2], folder / "without-ending")
    (folder / "notes.txt").write_text("no image")
    document = chestx("predict", files[3], table, folder, "--study", study, "--show-paths", "--json").json()
    assert [row["path"] for row in document["rows"]] == [
        *map(str, (files[3], files[0], files[1], folder / "without-ending"))
    ]
    assert "Left out of folders: 1 × no image." in document["notes"]
    table.write_text("file\nx.png\n")
    refused = chestx("predict", table, "--study", study)
    assert (refused.code, "lacks the column path; it has file" in refused.err) == (1, True)
    for words, fact in (
        (("nowhere.png",), "nowhere.png does not exist"),
        ((study,), "is a chestx study"),
        ((tmp_path / "empty",), f"no images in {tmp_path / 'empty'}"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        refused = chestx("predict", *words, "--study", study)
        assert (refused.code, fact in refused.err) == (1, True), refused.err


def test_more_images_than_are_kept_need_a_file(
    chestx: Chestx, study: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "MAX_KEPT", 5)
    refused = chestx("predict", other, "--study", study)
    assert (refused.code, "--csv predictions.csv" in refused.err) == (1, True)
    record = chestx_cli.predict((other,), study=study, csv=tmp_path / "p.csv")
    assert (record.images, len(record.rows)) == (len(files_of(other)), SHOWN_PREDICTIONS)


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        (("--variant", "baseline", "--bundle", "b"), "--variant and --bundle exclude each other"),
        (("--force",), "--force replaces a file of predictions"),
    ],
)
def test_options_that_do_not_go_together(chestx: Chestx, other: Path, words: tuple[str, ...], fact: str) -> None:
    refused = chestx("predict", other, *words)
    assert (refused.code, fact in refused.err) == (2, True)


def test_a_model_that_cannot_be_used_is_an_error(chestx: Chestx, study: Path, other: Path, tmp_path: Path) -> None:
    film = files_of(other)[0]
    assert "is no bundle: it has no model.json" in chestx("predict", film, "--bundle", tmp_path).err
    out = tmp_path / "bundle"
    assert chestx("export", "static-int8", "--study", study, "--out", out, "--anyway").code == 0
    edit(out / "model.onnx", lambda content: content + b"x")
    assert "model.onnx was changed since it was made" in chestx("predict", film, "--bundle", out).err
    edit(out / "model.json", lambda content: content.replace(b'"threshold"', b'"thresh"'))
    assert "model.json is damaged at threshold" in chestx("predict", film, "--bundle", out).err
    edit(study / "variants" / "static-int8" / "model.onnx", lambda content: content + b"x")
    words = ("predict", film, "--study", study, "--variant")
    assert "model.onnx was changed since it was made" in chestx(*words, "static-int8").err
    assert "no variant 'absent'" in chestx(*words, "absent").err
    assert "no split in" in chestx("predict", film, "--study", tmp_path / "nowhere").err


def grey_images() -> Iterator[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(5)
    yield rng.integers(0, 256, (40, 50), dtype=np.uint8)
    yield rng.integers(0, 60_000, (33, 47), dtype=np.uint16)


def test_arrays_are_predicted_as_the_files_that_hold_them(study: Path, tmp_path: Path) -> None:
    model = chestx_cli.open_study(study).variant("static-int8", threads=1)
    for number, pixels in enumerate(grey_images()):
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels).save(path)
        of_file, of_array = model.predict(path).rows[0], model.predict(pixels).rows[0]
        assert of_array.problem == of_file.problem
        assert of_array.probability == of_file.probability
    several = np.stack([next(grey_images())] * 3)
    assert len(model.predict(several).rows) == len(model.predict(list(several)).rows) == 3
    flat = model.predict(np.zeros((40, 40), dtype=np.uint8)).rows[0]
    assert (flat.decision, flat.problem) == (None, "one-grey: all its pixels are one grey")


@pytest.mark.parametrize(
    "images",
    [np.zeros((4, 4)), np.zeros((2, 3, 4, 4), dtype=np.uint8), ["film.png", np.zeros((40, 40), dtype=np.uint8)]],
)
def test_other_arrays_are_refused(study: Path, images: Any) -> None:
    with pytest.raises(UsageError, match=r"holds no grey images|paths and arrays are mixed"):
        chestx_cli.open_study(study).variant("static-int8").predict(images)


def test_an_opened_study_shows_what_it_is(study: Path) -> None:
    opened = chestx_cli.open_study(study)
    assert set(KINDS) < set(opened.variants)
    assert "static-int8" in repr(opened)
    model = opened.variant("static-int8")
    assert (model.positive, set(model.classes)) == (POSITIVE, {POSITIVE, "NORMAL"})
    assert "Not a medical device" in (type(model).__doc__ or "")
    docstring = " ".join((type(model).predict.__doc__ or "").split())
    assert "[images, height, width]" in docstring
    assert "0 to 255" in docstring
