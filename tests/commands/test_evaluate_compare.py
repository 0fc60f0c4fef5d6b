"""Operating points, temperatures, subgroups, other images and `chestx compare`, on a real study."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.special import logit

from chestx_cli.core.errors import IntegrityError, StudyError, UsageError
from chestx_cli.evaluation.endpoints import ENDPOINTS
from chestx_cli.evaluation.predictions import Images, read_predictions
from chestx_cli.evaluation.subgroups import subgroups_of
from chestx_cli.records.evaluation import EvaluationRecord
from chestx_cli.store.directory import Study
from chestx_cli.store.documents import read_record, write_record
from conftest import TINY, Chestx, edit, write_images
from support.made_up_study import FIVE, sha256, write_study


def variant(study: Path, name: str = "baseline") -> dict[str, Any]:
    """Return a variant's record."""
    document: dict[str, Any] = json.loads((study / "variants" / name / "variant.json").read_text())
    return document


def predictions(study: Path, name: str = "baseline", where: str = "test") -> pd.DataFrame:
    return pd.read_csv(study / "variants" / name / f"predictions.{where}.csv")


def evaluated(chestx: Chestx, study: Path, *words: object) -> dict[str, Any]:
    outcome = chestx("evaluate", "--study", study, *words, "--json")
    assert outcome.code == 0, outcome.err
    return outcome.json()


def image_stamps(record: dict[str, Any]) -> list[str]:
    """Return the stamps of a record's images; nine validation images leave every baseline of these tests UNPROVEN."""
    return [stamp for stamp in record["stamp"]["data_stamps"] if stamp != "UNPROVEN"]


def test_operating_points_are_frozen_and_used(chestx: Chestx, study: Path) -> None:
    record = evaluated(chestx, study, "--operating-point", "sensitivity=0.95")
    for row in record["operating_rows"]:
        frozen = variant(study, row["variant"])
        assert frozen["operating_point"]["rule"] == row["rule"] == "sensitivity=0.95"
        assert frozen["operating_point"]["sensitivity"] >= 0.95
        table = predictions(study, row["variant"])
        assert ((table["probability"] >= frozen["threshold"]) == table["decision"]).all()
        positive = table[table["is_positive"] == 1]
        assert row["sensitivity"] == pytest.approx(positive["decision"].mean())
    # What is frozen stays, and holds for a variant evaluated later.
    again = evaluated(chestx, study)
    assert again["operating_rows"] == record["operating_rows"]


def test_unknown_operating_point_is_a_usage_error(chestx: Chestx, study: Path) -> None:
    outcome = chestx("evaluate", "--study", study, "--operating-point", "best")
    assert outcome.code == 2
    assert "youden, sensitivity=0.95" in outcome.err


def test_drift_is_at_the_baselines_threshold(chestx: Chestx, study: Path) -> None:
    record = evaluated(chestx, study, "oneshot-50", "--operating-point", "youden")
    threshold = variant(study)["threshold"]
    table = predictions(study, "oneshot-50")
    (row,) = record["drift"]
    assert row["threshold"] == threshold
    called = table["probability"] >= threshold
    assert row["sensitivity"] == pytest.approx(called[table["is_positive"] == 1].mean())
    assert row["sensitivity_interval"][0] <= row["sensitivity"] <= row["sensitivity_interval"][1]
    assert row["sensitivity_change_interval"][0] <= row["sensitivity_change"] <= row["sensitivity_change_interval"][1]
    guards = {found["measure"]: found for found in record["guards"]}
    assert guards.keys() == {"sensitivity", "specificity", "AUROC"}
    for measure in ("sensitivity", "specificity"):
        rates = {found["variant"]: found[measure] for found in record["operating_rows"]}
        change = rates["oneshot-50"] - rates["baseline"]
        assert guards[measure]["difference"] == pytest.approx(change)
        assert guards[measure]["interval"][0] <= change <= guards[measure]["interval"][1]
    for found in record["class_rows"]:
        assert found["recall_interval"][0] <= found["recall"] <= found["recall_interval"][1]


def test_temperature_is_kept_and_applied(chestx: Chestx, tmp_path: Path) -> None:
    data, study = write_images(tmp_path / "data"), tmp_path / "study"
    # One label in six is wrong, so that nothing can separate the classes.
    for path in sorted((data / "NORMAL").iterdir())[::6]:
        path.rename(data / "PNEUMONIA" / path.name)
    assert chestx("train", data, "--study", study, *TINY, "--epochs", 3, "--batch-size", 16).code == 0
    evaluated(chestx, study)
    before = predictions(study)
    record = evaluated(chestx, study, "--temperature")
    frozen, after = variant(study), predictions(study)
    assert frozen["temperature"] != 1.0
    assert frozen["temperature_fit"]["log_loss_after"] < frozen["temperature_fit"]["log_loss_before"]
    np.testing.assert_allclose(
        logit(after["probability"]) * frozen["temperature"], logit(before["probability"]), rtol=1e-3, atol=1e-3
    )
    assert record["calibration"][0]["temperature"] == frozen["temperature"]
    assert (before["decision"] == after["decision"]).all()


def test_subgroups_by_pathogen_and_their_smallest_size(chestx: Chestx, study: Path) -> None:
    record = evaluated(chestx, study, "oneshot-50", "--by", "pathogen")
    table = predictions(study).merge(pd.read_csv(study / "split.csv"), on="image_id", validate="1:1")
    assert {row["subgroup"] for row in record["subgroups"]} == {"normal", "virus"}
    for row in record["subgroups"]:
        among = table["path"].str.contains("virus") == (row["subgroup"] == "virus")
        assert row["images"] == among.sum() < 20
        assert row["accuracy"] is None
        assert row["remark"] == "under 20"


def test_subgroups_by_a_column_of_the_manifest() -> None:
    paths = [f"{i}.png" for i in range(8)]
    images = Images(
        ids=np.array([f"img-{i}" for i in range(8)]),
        groups=np.array([f"p-{i // 2}" for i in range(8)]),
        is_positive=np.array([0, 1] * 4),
    )
    table = pd.DataFrame({"path": [*paths, "9.png"], "sex": [*"mmffmmff", ""], "mrn": [*"aabbccdd", "e"]})
    assert subgroups_of("sex", images, paths, (table,), {}).tolist() == list("mmffmmff")
    with pytest.raises(UsageError, match="the manifest has mrn, sex"):
        subgroups_of("age", images, paths, (table,), {})
    # What tells patients would be stored with the results.
    with pytest.raises(UsageError, match="4 values, 4 of them of one patient alone"):
        subgroups_of("mrn", images, paths, (table,), {})
    for column in ("group", "patient", "path"):
        with pytest.raises(UsageError, match="identifies patients or images"):
            subgroups_of(column, images, paths, (table,), {})


def test_other_images_have_their_own_predictions_and_section(chestx: Chestx, study: Path, tmp_path: Path) -> None:
    other = write_images(tmp_path / "other", n_normal=9, n_pneumonia=7, first=1000)
    before = (study / "variants" / "baseline" / "evaluation.test.json").read_bytes()
    record = evaluated(chestx, study, "--data", other, "--name", "external")
    assert (record["split"], record["images"]) == ("external", 16)
    assert len(predictions(study, "oneshot-50", "external")) == 16
    assert (study / "variants" / "baseline" / "evaluation.test.json").read_bytes() == before
    assert chestx("compare", "baseline", "oneshot-50", "--study", study, "--on", "external").code == 0
    assert chestx("report", "--study", study).code == 0
    page = (study / "report" / "report.md").read_text()
    assert "Results on other images: external" in page
    assert "none of them found in the training or validation split" in page


def shifted(image: Image.Image) -> Image.Image:
    return image.point([min(255, level + 25) for level in range(256)])


def resized(image: Image.Image) -> Image.Image:
    return image.resize((60, 56), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("suffix", "change"), [(".png", None), (".jpeg", lambda image: image), (".png", resized), (".png", shifted)]
)
def test_images_seen_in_training_are_found_again(
    chestx: Chestx,
    study: Path,
    data: Path,
    tmp_path: Path,
    suffix: str,
    change: Callable[[Image.Image], Image.Image] | None,
) -> None:
    other = write_images(tmp_path / "other", n_normal=5, n_pneumonia=4, first=1000)
    split = pd.read_csv(study / "split.csv")
    seen = split[split["split"] != "test"].iloc[3]
    twin = other / seen["label"] / f"IM-7777-0001{suffix}"
    if change is None:
        shutil.copy(data / seen["path"], twin)
    else:
        change(Image.open(data / seen["path"])).save(twin, quality=80)
    outcome = chestx("evaluate", "--study", study, "--data", other)
    kind = "same file" if change is None else "near-duplicate"
    assert outcome.code == 1
    assert "1 image of" in outcome.err
    assert f"{twin.name} and {seen['image_id']} of the {seen['split']} split: {kind}" in outcome.err
    assert not (study / "variants" / "baseline" / "evaluation.external.json").exists()
    assert not (study / "images.external.csv").exists()
    # A test image was not trained on.
    twin.unlink()
    tested = split[split["split"] == "test"].iloc[0]
    shutil.copy(data / tested["path"], other / tested["label"] / "IM-7778-0001.png")
    assert chestx("evaluate", "baseline", "--study", study, "--data", other).code == 0


def test_shared_patients_are_an_error_or_a_stamp(chestx: Chestx, study: Path, tmp_path: Path) -> None:
    # Other images of the patients 0 and 2, who were trained on.
    other = write_images(tmp_path / "other", n_normal=7, n_pneumonia=5, first=1000)
    split = pd.read_csv(study / "split.csv")
    seen = split[(split["split"] == "train") & (split["label"] == "NORMAL")]["path"].iloc[0]
    for number, path in enumerate(sorted((other / "NORMAL").iterdir())[:2]):
        path.rename(path.with_name(f"{Path(seen).stem[:7]}-9{number}.png"))
    words = ("--data", other, "--name", "ward")
    outcome = chestx("evaluate", "--study", study, *words)
    assert outcome.code == 1
    assert "1 patient of" in outcome.err
    assert f"a patient with 2 here (NORMAL/{Path(seen).stem[:7]}-90.png, …) and some in the train split" in outcome.err
    shown = chestx("evaluate", "--study", study, *words, "--allow-leakage", "--full")
    assert shown.code == 0
    tables = shown.out.split("\n\n")
    assert all("LEAKED" in table for table in tables if "Accuracy" in table or "Sens." in table or "Brier" in table)
    record = json.loads((study / "variants" / "oneshot-50" / "evaluation.ward.json").read_text())
    assert image_stamps(record) == ["LEAKED"]
    compared = chestx("compare", "baseline", "oneshot-50", "--study", study, "--on", "ward", "--full")
    assert "LEAKED: 1 patient of ward" in compared.out
    assert compared.out.count("LEAKED") >= 4
    assert chestx("report", "--study", study).code == 0
    page = (study / "report" / "report.md").read_text()
    section = page[page.index("## Results on other images: ward") :].split("\n## ")[0]
    assert "trained on" not in section.split("LEAKED")[0]
    assert "**LEAKED, UNPROVEN: Accuracy and AUROC, each with its 95 % interval**" in section
    assert "LEAKED: " not in page.split("## Results on other images")[0]


def test_patients_of_other_images_are_told_as_those_of_a_split(chestx: Chestx, study: Path, tmp_path: Path) -> None:
    other = write_images(tmp_path / "other", n_normal=6, n_pneumonia=6, first=1000)
    for path in sorted(other.rglob("*.png")):
        path.rename(
            path.with_name(
                f"scan-{int(path.stem.split('_')[-1].split('-')[-1]) // 3}-{path.stem[:2]}-{path.stem[-4:]}.png"
            )
        )
    copied = sorted((other / "NORMAL").iterdir())[0]
    Image.open(copied).save(copied.with_suffix(".bmp"))
    unknown = evaluated(chestx, study, "--data", other)
    assert image_stamps(unknown) == ["UNGROUPED"]
    # The copy counts as an image of the same patient.
    assert (unknown["images"], unknown["patients"]) == (13, 12)
    told = evaluated(chestx, study, "--data", other, "--group-regex", r"scan-(\d+)-")
    assert (image_stamps(told), told["patients"]) == ([], 2)
    table = pd.DataFrame({"path": [path.relative_to(other).as_posix() for path in other.rglob("*-*")], "group": "one"})
    table.to_csv(tmp_path / "groups.csv", index=False)
    listed = evaluated(chestx, study, "--data", other, "--groups", tmp_path / "groups.csv")
    assert (image_stamps(listed), listed["patients"]) == ([], 1)
    shutil.copy(copied, other / "PNEUMONIA" / "scan-9-x.png")
    assert "under two labels" in chestx("evaluate", "--study", study, "--data", other).err
    assert chestx("evaluate", "--study", study, "--group-regex", "(x)").code == 2


def test_without_the_studys_images_other_ones_are_stamped(chestx: Chestx, tmp_path: Path) -> None:
    data, study = write_images(tmp_path / "data"), tmp_path / "study"
    assert chestx("train", data, "--study", study, *TINY, "--epochs", 1, "--batch-size", 16).code == 0
    other = write_images(tmp_path / "other", n_normal=5, n_pneumonia=4, first=1000)
    assert image_stamps(evaluated(chestx, study, "--data", other)) == []
    shutil.rmtree(study / "cache")
    data.rename(tmp_path / "elsewhere")
    record = evaluated(chestx, study, "--data", other)
    assert image_stamps(record) == ["UNREAD"]
    assert any("only identical files were looked for" in note for note in record["notes"])


@pytest.mark.parametrize(
    "words", [("--name", "x"), ("--data", "d", "--name", "test"), ("--data", "d", "--name", "a/b")]
)
def test_names_that_cannot_be_meant(chestx: Chestx, study: Path, words: tuple[str, ...]) -> None:
    assert chestx("evaluate", "--study", study, *words).code == 2


def test_compare_says_what_evaluate_says(chestx: Chestx, study: Path) -> None:
    compared = evaluated(chestx, study, "oneshot-50")["comparisons"][0]
    record = chestx("compare", "baseline", "oneshot-50", "--study", study, "--json").json()
    accuracy = record["rows"][0]
    assert accuracy["measure"] == "Accuracy"
    for name in ("lost", "won", "difference", "p"):
        assert accuracy[name] == compared[name]
    assert accuracy["difference_interval"] == compared["interval"]
    assert record["verdict"].startswith("oneshot-50 is ")
    assert [row["measure"] for row in record["rows"]] == ["Accuracy", "Sensitivity (PNEUMONIA)", "Specificity"]
    assert "paired test" in chestx("compare", "baseline", "oneshot-50", "--study", study, "--full").out


def test_compare_wants_present_predictions(chestx: Chestx, study: Path) -> None:
    folder = study / "variants" / "oneshot-50"
    edit(folder / "predictions.test.csv", lambda content: content.replace(b",1\n", b",0\n", 1))
    outcome = chestx("compare", "baseline", "oneshot-50", "--study", study)
    assert outcome.code == 1
    assert "predictions.test.csv was changed" in outcome.err
    (folder / "evaluation.test.json").unlink()
    outcome = chestx("compare", "baseline", "oneshot-50", "--study", study)
    assert "has not been evaluated on test" in outcome.err
    assert "chestx evaluate oneshot-50" in outcome.err
    assert chestx("compare", "baseline", "baseline", "--study", study).code == 2


def test_predictions_that_are_gone_are_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "predictions.test.csv"
    with pytest.raises(
        StudyError, match=("no longer exists: it was removed, or its variant was replaced in the meantime")
    ):
        read_predictions(path)
    path.write_text("image_id\n1\n")
    with pytest.raises(IntegrityError, match="is damaged"):
        read_predictions(path)


def rename_images(study: Study, name: str, prefix: str) -> None:
    """Give the test images of an evaluation the ids and patients of another fold."""
    folder = study.variant(name)
    table = pd.read_csv(folder / "predictions.test.csv")
    table["image_id"], table["group"] = prefix + table["image_id"], prefix + table["group"]
    content = table.to_csv(index=False, lineterminator="\n")
    (folder / "predictions.test.csv").write_text(content)
    record = read_record(EvaluationRecord, folder / "evaluation.test.json")
    row = dataclasses.replace(record.rows[0], predictions_sha256=sha256(content))
    write_record(folder / "evaluation.test.json", record.replace(rows=(row,)))


def test_compare_pools_folds(chestx: Chestx, tmp_path: Path) -> None:
    root = tmp_path / "folds"
    for number in (1, 2):
        made = write_study(tmp_path / f"made-{number}", FIVE[:2], epochs=2)
        shutil.move(made.root, root / f"fold-{number}")
    (root / "folds.json").write_text("{}")
    twice = chestx("compare", "baseline", "oneshot-50", "--study", root)
    assert twice.code == 1
    assert "tested in two folds" in twice.err
    for name in ("baseline", "oneshot-50"):
        rename_images(Study(root / "fold-2"), name, "b-")
    outcome = chestx("compare", "baseline", "oneshot-50", "--study", root, "--json")
    assert outcome.code == 0, outcome.err
    record = outcome.json()
    assert (record["images"], record["patients"]) == (112, 56)
    assert record["evaluated_on"] == "test, pooled over 2 folds"
    assert [row["fold"] for row in record["folds"]] == ["fold-1", "fold-2"]
    assert sum(row["lost"] for row in record["folds"]) == record["rows"][0]["lost"]
    for row in record["folds"]:
        for name in ("first", "second", "difference", "auroc_difference"):
            assert row[f"{name}_interval"][0] <= row[name] <= row[f"{name}_interval"][1]
    # Scores of two folds' models are on two scales.
    assert record["auroc_rows"] == []
    assert any("Mean ΔAUROC within folds" in note for note in record["notes"])
    for name, entry in ENDPOINTS.items():
        found = chestx("compare", "baseline", "oneshot-50", "--study", root, "--endpoint", name, "--json").json()
        (row,) = found["endpoint_rows"]
        assert (found["endpoint"], found["margin"], row["margin"]) == (name, entry.margin, entry.margin)
        assert row["difference"] == pytest.approx(row["second"] - row["first"])
        assert row["difference_interval"][0] <= row["difference"] <= row["difference_interval"][1]
        shown = chestx("compare", "baseline", "oneshot-50", "--study", root, "--endpoint", name)
        assert entry.noun.capitalize()[:5].lower() in shown.out.lower()
