"""Trainings not shown to have learned anything: the criteria, and the mark on every later table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from chestx_cli.evaluation.learned import faults_of
from chestx_cli.evaluation.predictions import Images, Predictions, predictions_of
from conftest import TINY, Chestx, edit, write_images
from support.made_up_study import FIVE, Made, write_study

CLASSES = ("NORMAL", "PNEUMONIA")
EVERY = range(28)


def made(truth: list[int], probability: list[float], groups: list[str] | None = None) -> Predictions:
    """Return predictions at a threshold of 0.5, by default with one patient per image."""
    ids = [f"img-{i}" for i in range(len(truth))]
    images = Images(ids=np.array(ids), groups=np.array(groups or ids), is_positive=np.array(truth, dtype=np.int64))
    return predictions_of(images, np.array(probability, dtype=np.float64), 0.5)


def spread(n: int, low: float, high: float) -> list[float]:
    return [float(value) for value in np.linspace(low, high, n)]


@pytest.mark.parametrize(
    ("truth", "probability", "faults"),
    [
        ([0] * 10 + [1] * 10, [*spread(10, 0.1, 0.4), *spread(10, 0.6, 0.9)], ()),
        ([0] * 10 + [1] * 10, [*spread(10, 0.6, 0.7), *spread(10, 0.8, 0.9)], ("every image is called PNEUMONIA",)),
        ([0] * 10 + [1] * 10, [*spread(10, 0.1, 0.2), *spread(10, 0.3, 0.4)], ("every image is called NORMAL",)),
        (
            [0] * 10 + [1] * 10,
            [0.3] * 20,
            ("every image is called NORMAL", "the AUROC's 95 % interval 0.27–0.73 reaches 0.5"),
        ),
        # Ranked the wrong way round: chance would do better.
        (
            [0] * 20 + [1] * 20,
            [*spread(20, 0.3, 0.9), *spread(20, 0.1, 0.7)],
            ("lies below 0.5", "no better than calling every image NORMAL (20)"),
        ),
        # The order is learned, and at this threshold the larger class alone would be right as often.
        (
            [0] * 30 + [1] * 6,
            [*spread(24, 0.1, 0.4), *spread(6, 0.55, 0.6), *spread(6, 0.65, 0.9)],
            ("30 of 36 right, no better than calling every image NORMAL (30)",),
        ),
        (
            [0] * 6 + [1] * 30,
            [*spread(6, 0.1, 0.3), *spread(6, 0.35, 0.4), *spread(24, 0.6, 0.9)],
            ("30 of 36 right, no better than calling every image PNEUMONIA (30)",),
        ),
        (
            [1] * 5,
            spread(5, 0.6, 0.9),
            ("every image is PNEUMONIA, so nothing shows that it can separate the classes",),
        ),
        ([0], [0.1], ("every image is NORMAL, so nothing shows that it can separate the classes",)),
        ([0, 1], [0.1, 0.9], ("the AUROC's 95 % interval",)),
    ],
)
def test_faults(truth: list[int], probability: list[float], faults: tuple[str, ...]) -> None:
    found = faults_of([made(truth, probability)], CLASSES)
    assert len(found) == len(faults), found
    assert all(said in text for said, text in zip(faults, found, strict=True)), found


def test_images_of_one_patient_show_less_than_images_of_several() -> None:
    truth, probability = [0] * 12 + [1] * 12, [*spread(12, 0.1, 0.4), *spread(12, 0.6, 0.9)]
    assert faults_of([made(truth, probability)], CLASSES) == ()
    groups = ["a"] * 12 + ["b"] * 12
    assert "reaches 0.5" in faults_of([made(truth, probability, groups)], CLASSES)[0]


def test_scores_of_folds_are_not_compared_with_each_other() -> None:
    # Each fold's model ranks perfectly, on a scale of its own, so that together they would not.
    low = made([0] * 20 + [1] * 20, [*spread(20, 0.05, 0.2), *spread(20, 0.5, 0.6)])
    high = made([0] * 20 + [1] * 20, [*spread(20, 0.48, 0.499), *spread(20, 0.9, 0.95)])
    assert faults_of([low, high], CLASSES) == ()
    guess = made([0, 1] * 20, [0.4, 0.4, 0.6, 0.6] * 10)
    (area, accuracy) = faults_of([guess, guess], CLASSES)
    assert area.startswith("the mean AUROC's 95 % interval 0.3")
    assert accuracy == "40 of 80 right, no better than calling every image NORMAL (40)"
    # One interval of two folds is narrower than each of theirs.
    weak = made([0] * 12 + [1] * 12, [*spread(12, 0.2, 0.62), *spread(12, 0.36, 0.8)])
    assert any(
        "AUROC" in text for text in faults_of([made([0] * 6 + [1] * 6, weak.probability[::2].tolist())], CLASSES)
    )
    assert faults_of([weak] * 4, CLASSES) == ()


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_predictions_faults_are_numbers_that_can_be_read(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 12))
    truth = rng.integers(0, 2, n).tolist()
    probability = np.round(rng.random(n), int(rng.integers(0, 3))).tolist()
    groups = [f"p-{i}" for i in rng.integers(0, n, n)]
    assert "nan" not in " ".join(faults_of([made(truth, probability, groups)], CLASSES))


@pytest.fixture
def learned(chestx: Chestx, tmp_path: Path) -> Path:
    """Return a study whose baseline separates the classes, with enough images to show it."""
    data, study = write_images(tmp_path / "many", n_normal=96, n_pneumonia=84), tmp_path / "learned"
    outcome = chestx("train", data, "--study", study, *TINY, "--epochs", 3, "--batch-size", 8, "--seed", 1)
    assert outcome.code == 0, outcome.err
    assert "UNPROVEN" not in outcome.out + outcome.err
    return study


def test_a_baseline_that_has_learned_is_not_stamped(chestx: Chestx, learned: Path) -> None:
    for words in (("prune",), ("evaluate",), ("compare", "baseline", "oneshot-50"), ("report",)):
        outcome = chestx(*words, "--study", learned)
        assert outcome.code == 0, outcome.err
        assert "UNPROVEN" not in outcome.out + outcome.err, outcome.out
    assert "UNPROVEN" not in (learned / "report" / "report.md").read_text()


def test_train_says_at_its_end_that_nothing_shows_it_has_learned(chestx: Chestx, fresh: Path) -> None:
    record = json.loads((fresh / "variants" / "baseline" / "variant.json").read_text())
    (finding,) = record["unproven"]
    (caveat,) = record["notes"]
    assert finding in caveat
    assert caveat.startswith(
        "UNPROVEN: baseline is not shown to have learned anything (9 validation images, 5 patients"
    )
    assert ": every image is called PNEUMONIA; the AUROC's 95 % interval 0." in caveat
    assert record["stamp"]["data_stamps"] == ["UNPROVEN"]
    again = chestx("train", "--study", fresh, *TINY, "--epochs", 1, "--batch-size", 16)
    assert "already done" in again.err
    assert caveat in again.out.splitlines()


def test_a_variant_is_told_apart_from_the_model_that_it_was_made_from(chestx: Chestx, fresh: Path) -> None:
    said = " ".join(chestx("prune", "--study", fresh).out.split())
    assert "The model that oneshot-50 was made from is not shown to have learned anything: 9 validation" in said
    assert " oneshot-50 is not shown" not in said


COMMANDS = (
    ("prune", "--method", "oneshot"),
    ("prune", "--method", "iterative", "--steps", "1", "--finetune-epochs", "1", "--batch-size", "16"),
    ("quantize", "--from", "oneshot-50"),
    ("sensitivity", "--amounts", "0.5"),
    ("sensitivity", "--structured", "--amounts", "0.5", "--from", "oneshot-50"),
    ("evaluate",),
    ("compare", "baseline", "oneshot-50"),
    ("compare", "oneshot-50", "oneshot-50-dynamic-int8"),
    ("benchmark", "oneshot-50-dynamic-int8", "--rounds", "1", "--duration", "0.02", "--runtimes", "onnxruntime"),
    ("export", "oneshot-50-dynamic-int8", "--out", "BUNDLE"),
    ("compress", "--max-size-mb", "5", "--finetune-epochs", "1", "--time-budget", "0.001"),
    ("report",),
)


def test_every_later_table_is_stamped_and_says_why(chestx: Chestx, fresh: Path, tmp_path: Path) -> None:
    for command in COMMANDS:
        words = [str(tmp_path / "bundle") if word == "BUNDLE" else word for word in command]
        outcome = chestx(*words, "--study", fresh, "--full")
        assert outcome.code == 0, outcome.err
        said = " ".join((outcome.out + outcome.err).split())
        assert "UNPROVEN: baseline is not shown to have learned anything (9 validation images" in said, command
        # Whatever is printed between two empty lines, but for commands and the sentences at the end, is a table.
        blocks = [block for block in outcome.out.strip().split("\n\n") if not block.startswith(("  ", "$ "))]
        assert blocks[0].splitlines()[1] == "UNPROVEN", outcome.out
        assert all("UNPROVEN" in block.splitlines()[:2] for block in blocks[1:]), outcome.out
    page = (fresh / "report" / "report.md").read_text()
    before, _, after = page.partition("## Training of the baseline")
    captions = [line for line in after.split("## Settings")[0].splitlines() if line.startswith("**")]
    tables = [line for line in captions if page.split(line)[1].lstrip().startswith("|")]
    assert len(tables) > 15
    assert all(line.startswith("**UNPROVEN: ") for line in tables)
    # What the images are does not depend on a model.
    assert "**UNPROVEN" not in before[before.index("## Data set") :]
    figures = fresh / "report" / "figures"
    for name, stamped in (("comparison", True), ("sensitivity", True), ("split", False)):
        assert ("UNPROVEN: " in (figures / f"{name}.svg").read_text()) == stamped, name


def test_the_test_images_say_it_too_and_later_commands_repeat_it(chestx: Chestx, fresh: Path) -> None:
    assert chestx("prune", "--study", fresh).code == 0
    # As if the validation images had shown that it has learned, or an earlier chestx had not looked.
    for name in ("baseline", "oneshot-50"):
        edit(
            fresh / "variants" / name / "variant.json",
            lambda content: json.dumps({k: v for k, v in json.loads(content).items() if k != "unproven"}).encode(),
        )
    record = chestx("evaluate", "--study", fresh, "--json").json()
    assert record["stamp"]["data_stamps"] == ["UNPROVEN"]
    (row,) = record["unproven"]
    assert row["variant"] == "baseline"
    assert row["finding"].startswith("9 test images, 6 patients: ")
    assert record["baseline_faults"] == [row["finding"]]
    told = f"UNPROVEN: baseline is not shown to have learned anything ({row['finding']})."
    assert any(note.startswith(told) for note in record["notes"])
    for words in (
        ("compare", "baseline", "oneshot-50"),
        ("benchmark", "oneshot-50", "--rounds", "1", "--duration", "0.02", "--runtimes", "onnxruntime"),
        ("quantize", "--from", "oneshot-50"),
        ("report",),
    ):
        outcome = chestx(*words, "--study", fresh)
        assert outcome.code == 0, outcome.err
        assert outcome.out.strip().splitlines()[1] == "UNPROVEN", outcome.out
        assert "(9 test images, 6 patients: " in " ".join((outcome.out + outcome.err).split())


def test_another_threshold_is_looked_at_again(chestx: Chestx, fresh: Path) -> None:
    assert "every image is called" in (fresh / "variants" / "baseline" / "variant.json").read_text()
    assert chestx("evaluate", "--study", fresh, "--operating-point", "youden").code == 0
    record = json.loads((fresh / "variants" / "baseline" / "variant.json").read_text())
    assert "every image is called" not in json.dumps(record)
    assert "reaches 0.5" in record["unproven"][0]
    assert [record["unproven"][0] in note for note in record["notes"]] == [True]


def test_compare_judges_its_first_variant(chestx: Chestx, tmp_path: Path) -> None:
    variants = (Made(name="baseline", wrong=tuple(EVERY), p50_ms={"pytorch": 1.0, "onnxruntime": 1.0}), *FIVE[1:3])
    study = write_study(tmp_path, variants, epochs=2).root
    record = chestx("compare", "baseline", "oneshot-50", "--study", study, "--json").json()
    assert record["stamp"]["data_stamps"] == ["UNPROVEN"]
    assert any("(56 test images, 28 patients: every image is called PNEUMONIA" in note for note in record["notes"])
    # Being better than that is nothing.
    assert record["short"] == "inconclusive (baseline)"
    assert "baseline is not shown to have learned anything" in record["verdict"]
    assert chestx("compare", "oneshot-50", "baseline", "--study", study, "--json").json()["stamp"]["data_stamps"] == []


def test_other_images_are_judged_for_themselves(chestx: Chestx, learned: Path, tmp_path: Path) -> None:
    other = write_images(tmp_path / "other", n_normal=2, n_pneumonia=2, first=1000)
    assert chestx("evaluate", "--study", learned).code == 0
    record = chestx("evaluate", "--study", learned, "--data", other, "--json").json()
    assert record["stamp"]["data_stamps"] == ["UNPROVEN"]
    assert chestx("report", "--study", learned).code == 0
    page = (learned / "report" / "report.md").read_text()
    before, _, section = page.partition("## Results on other images: external")
    assert "**UNPROVEN: Accuracy and AUROC, each with its 95 % interval**" in section
    assert "(4 images of external, " in section
    assert "UNPROVEN" not in before
