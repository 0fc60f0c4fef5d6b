"""`chestx split`: layouts, patients, strata, and unusable data."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chestx_cli.core.errors import UsageError
from chestx_cli.data.overlap import study_keys
from chestx_cli.data.sources.patients import group_by_name
from chestx_cli.data.splitting import stratified_group_split
from chestx_cli.records.split import UNMATCHED
from chestx_cli.store.directory import Study
from conftest import Chestx, draw_image, tree, write_images


def parts_by_group(study: Path) -> pd.Series:
    table = pd.read_csv(study / "split.csv")
    return table.groupby("group")["split"].nunique()


def test_split_is_stratified_and_keeps_patients_together(chestx: Chestx, data: Path, tmp_path: Path) -> None:
    outcome = chestx("split", data, "--study", tmp_path / "s", "--json")
    record = outcome.json()
    assert record["schema"] == "chestx.split/5"
    assert (record["images"], record["positive"]) == (60, "PNEUMONIA")
    shares = {(row["split"], row["label"]): row["share"] for row in record["rows"]}
    for (part, _), share in shares.items():
        assert share == pytest.approx(0.7 if part == "train" else 0.15, abs=0.05)
    assert parts_by_group(tmp_path / "s").max() == 1
    assert record["patients"] < record["images"]
    assert {row["rule"] for row in record["group_rules"]} == {"paediatric pneumonia", "paediatric normal (IM)"}
    for name in ("class-distribution", "split"):
        assert (tmp_path / "s" / "report" / "figures" / f"{name}.svg").stat().st_size > 1000


def test_same_seed_same_manifest_other_seed_another(chestx: Chestx, data: Path, tmp_path: Path) -> None:
    for study, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert chestx("split", data, "--study", tmp_path / study, "--seed", seed).code == 0
    manifests = [(tmp_path / study / "split.csv").read_text() for study in "abc"]
    assert manifests[0] == manifests[1]
    assert manifests[0] != manifests[2]


def test_again_is_already_done_and_other_options_are_refused(chestx: Chestx, data: Path, tmp_path: Path) -> None:
    study = tmp_path / "s"
    assert chestx("split", data, "--study", study).code == 0
    before = tree(study)
    again = chestx("split", data, "--study", study)
    assert again.code == 0
    assert "already done" in again.err
    other = chestx("split", data, "--study", study, "--ratios", "60/20/20")
    assert other.code == 1
    assert "ratios" in other.err
    assert "--force" in other.err
    assert "--study" in other.err
    assert tree(study) == before
    assert chestx("split", data, "--study", study, "--ratios", "60/20/20", "--force").code == 0
    assert tree(study) != before


def test_changed_data_are_not_already_done(chestx: Chestx, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data")
    assert chestx("split", data, "--study", tmp_path / "s").code == 0
    draw_image(np.random.default_rng(1), bright=False).save(data / "NORMAL" / "IM-0999-0001.png")
    outcome = chestx("split", data, "--study", tmp_path / "s")
    assert outcome.code == 1
    assert "1 images added, 0 removed" in outcome.err


def test_predefined_split_is_kept(chestx: Chestx, tmp_path: Path) -> None:
    for number, part in enumerate(("train", "val", "test")):
        write_images(tmp_path / "data" / part, n_normal=4, n_pneumonia=4, first=1000 * number)
    record = chestx("split", tmp_path / "data", "--study", tmp_path / "s", "--json").json()
    table = pd.read_csv(tmp_path / "s" / "split.csv")
    assert (table["path"].str.split("/").str[0] == table["split"]).all()
    assert record["audit"]["stamps"] == []


def test_manifest_gives_group_and_split(chestx: Chestx, data: Path, tmp_path: Path) -> None:
    files = sorted(data.rglob("*.png"))
    rows = [(path.as_posix(), path.parent.name, f"p{index // 4}") for index, path in enumerate(files)]
    manifest = tmp_path / "manifest.csv"
    pd.DataFrame(rows, columns=["path", "label", "group"]).to_csv(manifest, index=False)
    record = chestx("split", manifest, "--study", tmp_path / "s", "--json").json()
    assert (record["images"], record["patients"]) == (60, 15)
    assert parts_by_group(tmp_path / "s").max() == 1
    study = Study(tmp_path / "s")
    assert study_keys(study, study.read_split()) == [group for _, _, group in rows]

    table = pd.DataFrame(rows, columns=["path", "label", "group"])
    table["split"] = [("train", "val", "test")[index // 4 % 3] for index in range(len(rows))]
    table.to_csv(manifest, index=False)
    chestx("split", manifest, "--study", tmp_path / "kept", "--json").json()
    assert (pd.read_csv(tmp_path / "kept" / "split.csv")["split"] == table["split"]).all()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("file,label\na.png,X\n", "path"),
        ("path,label\na.png,\n", "no label in line 2"),
        ("path,label\na.png,X\na.png,Y\n", "twice"),
        ("path,label,split\na.png,X,fold3\n", "'fold3'"),
        ("path,label,split\na.png,X,train\n", "no image in test"),
        ("path,label\n", "no images"),
        ("", "cannot read manifest"),
    ],
)
def test_bad_manifests_are_refused(chestx: Chestx, tmp_path: Path, content: str, said: str) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text(content)
    outcome = chestx("split", manifest, "--study", tmp_path / "s")
    assert outcome.code == 1
    assert said in outcome.err
    assert not (tmp_path / "s").exists()


def test_positive_class_can_be_named(chestx: Chestx, data: Path, tmp_path: Path) -> None:
    assert (
        chestx("split", data, "--study", tmp_path / "a", "--positive", "NORMAL", "--json").json()["positive"]
        == "NORMAL"
    )
    outcome = chestx("split", data, "--study", tmp_path / "b", "--positive", "covid")
    assert (outcome.code, "NORMAL, PNEUMONIA" in outcome.err) == (2, True)


def test_bad_images_are_all_listed_or_left_out(chestx: Chestx, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data")
    jpeg = data / "NORMAL" / "IM-0900-0001.jpeg"
    draw_image(np.random.default_rng(1), bright=False).save(jpeg)
    jpeg.write_bytes(jpeg.read_bytes()[:300])
    (data / "PNEUMONIA" / "person900_virus_1.png").write_text("this is no image")
    (data / "PNEUMONIA" / "notes.txt").write_text("ignored")
    outcome = chestx("split", data, "--study", tmp_path / "s")
    assert outcome.code == 1
    assert "2 images cannot be read" in outcome.err
    assert "IM-0900-0001.jpeg: damaged" in outcome.err
    assert "person900_virus_1.png: wrong-format: not a PNG, JPEG" in outcome.err
    assert "--skip-bad" in outcome.err
    assert not (tmp_path / "s").exists()
    record = chestx("split", data, "--study", tmp_path / "s", "--skip-bad", "--json").json()
    assert (record["images"], len(record["bad_images"]), record["ignored_files"]) == (60, 2, 1)
    assert sum(rule["images"] for rule in record["group_rules"]) == 60


def test_folders_that_are_no_data_set_are_refused(chestx: Chestx, data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    shutil.copytree(data / "NORMAL", tmp_path / "one" / "NORMAL")
    shutil.copytree(data, tmp_path / "hollow")
    (tmp_path / "hollow" / "THIRD").mkdir()
    shutil.copytree(data, tmp_path / "three")
    shutil.copytree(data / "NORMAL", tmp_path / "three" / "THIRD")
    shutil.copytree(data, tmp_path / "noval" / "train")
    (tmp_path / "file.txt").write_text("x")
    expected = {
        "missing": "does not exist",
        "empty": "no images",
        "one": "exactly two",
        "hollow": "THIRD has no images",
        "three": "exactly two",
        "noval": "has no test/",
        "file.txt": "neither a folder nor",
    }
    for name, said in expected.items():
        outcome = chestx("split", tmp_path / name, "--study", tmp_path / "s")
        assert outcome.code == 1, name
        assert said in outcome.err, (name, outcome.err)
        assert "Traceback" not in outcome.err
    assert not (tmp_path / "s").exists()


def test_a_part_without_a_class_is_refused(chestx: Chestx, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", n_normal=20, n_pneumonia=2)
    outcome = chestx("split", data, "--study", tmp_path / "s")
    assert outcome.code == 1
    assert "has no image of class PNEUMONIA" in outcome.err


@pytest.mark.parametrize("ratios", ["70/30", "70/15/16", "100/0/0", "a/b/c"])
def test_bad_ratios_are_usage_errors(chestx: Chestx, data: Path, tmp_path: Path, ratios: str) -> None:
    assert chestx("split", data, "--study", tmp_path / "s", "--ratios", ratios).code == 2


def test_patient_rules() -> None:
    names = {
        "PNEUMONIA/person12_bacteria_3.jpeg": "person12_bacteria",
        "PNEUMONIA/person12_bacteria_9.jpeg": "person12_bacteria",
        "PNEUMONIA/person12_virus_3.jpeg": "person12_virus",
        "NORMAL/IM-0115-0001.jpeg": "im-0115",
        "NORMAL/IM-0115-0001-0002.jpeg": "im-0115",
        "NORMAL/NORMAL2-IM-0115-0001.jpeg": "normal2-im-0115",
        "x/00000013_002.png": "nih-00000013",
    }
    grouping = group_by_name(list(names))
    assert list(grouping.keys) == list(names.values())
    assert grouping.unmatched == 0
    unknown = group_by_name(["x/a.png", "y/a.png"])
    assert len(set(unknown.keys)) == 2
    assert unknown.matched == {UNMATCHED: 2}
    assert unknown.take([1]).matched == {UNMATCHED: 1}


def test_group_regex() -> None:
    paths = ["site1/pat7/a.png", "site1/pat7/b.png", "site1/c.png"]
    grouping = group_by_name(paths, r"pat(\d+)")
    assert grouping.keys[:2] == ("7", "7")
    assert grouping.unmatched == 1
    assert group_by_name(paths, r"(site\d)/pat(?P<patient>\d+)").keys[0] == "7"
    for bad in ("pat(", r"pat\d+"):
        with pytest.raises(UsageError):
            group_by_name(paths, bad)


@pytest.mark.parametrize("seed", range(5))
def test_stratified_group_split_never_divides_a_group(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 300, size=800)
    labels = (groups % 3 == 0).astype(np.int64)
    parts = stratified_group_split(labels, groups, (70, 15, 15), rng)
    assert max(len(set(parts[groups == group])) for group in set(groups)) == 1
    for label in (0, 1):
        shares = np.bincount(parts[labels == label], minlength=3) / (labels == label).sum()
        assert shares == pytest.approx([0.7, 0.15, 0.15], abs=0.02)


def test_single_images_are_split_exactly() -> None:
    labels = np.repeat([0, 1], [200, 178])
    parts = stratified_group_split(labels, np.arange(378), (70, 15, 15), np.random.default_rng(0))
    assert np.bincount(parts[labels == 0]).tolist() == [140, 30, 30]
    assert np.bincount(parts[labels == 1]).tolist() == [124, 27, 27]


def test_an_edited_manifest_is_not_already_done(chestx: Chestx, data: Path, tmp_path: Path) -> None:
    files = sorted(data.rglob("*.png"))
    table = pd.DataFrame({"path": [p.as_posix() for p in files], "label": [p.parent.name for p in files]})
    table["group"] = [f" p{index} " for index in range(len(files))]
    manifest = tmp_path / "m.csv"
    table.to_csv(manifest, index=False)
    assert chestx("split", manifest, "--study", tmp_path / "s").code == 0
    assert pd.read_csv(tmp_path / "s" / "split.csv")["group"].nunique() == len(files)
    table["group"] = [f"p{index // 2}" for index in range(len(files))]
    table.to_csv(manifest, index=False)
    outcome = chestx("split", manifest, "--study", tmp_path / "s")
    assert outcome.code == 1
    assert "with another label, patient or part" in outcome.err
    table.to_csv(tmp_path / "other.csv", index=False)
    assert chestx("train", tmp_path / "other.csv", "--study", tmp_path / "s", "--weights", "none").code == 1


def test_identical_files_stay_together_and_have_one_label(chestx: Chestx, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data")
    originals = sorted((data / "NORMAL").iterdir())[:12]
    for index, path in enumerate(originals):
        shutil.copy(path, data / "NORMAL" / f"IM-{5000 + index}-0001.png")
    assert chestx("split", data, "--study", tmp_path / "s").code == 0
    table = pd.read_csv(tmp_path / "s" / "split.csv")
    assert table.groupby("sha256")["split"].nunique().max() == 1
    assert table["sha256"].duplicated().sum() == 12
    twin = data / "PNEUMONIA" / "person999_virus_1.png"
    Image.open(originals[0]).save(twin, compress_level=1)
    assert twin.read_bytes() != originals[0].read_bytes()
    outcome = chestx("split", data, "--study", tmp_path / "t")
    assert outcome.code == 1
    assert "under two labels" in outcome.err
    assert f"NORMAL/{originals[0].name} (NORMAL) and PNEUMONIA/{twin.name} (PNEUMONIA): same pixels" in outcome.err
    assert not (tmp_path / "t").exists()


def test_part_folders_may_be_capitalised(chestx: Chestx, tmp_path: Path) -> None:
    for index, part in enumerate(("Train", "Val", "TEST")):
        write_images(tmp_path / "data" / part, n_normal=4 + index, n_pneumonia=4, first=1000 * index)
    record = chestx("split", tmp_path / "data", "--study", tmp_path / "s", "--json").json()
    assert record["classes"] == ["NORMAL", "PNEUMONIA"]
    assert {row["split"]: row["images"] for row in record["rows"] if row["label"] == "NORMAL"} == {
        "train": 4,
        "val": 5,
        "test": 6,
    }


def test_unknown_patients_and_leaks_are_told_wherever_results_are(chestx: Chestx, tmp_path: Path) -> None:
    from conftest import TINY

    data, study = tmp_path / "data", tmp_path / "s"
    for part in ("train", "val", "test"):
        write_images(data / part, n_normal=6, n_pneumonia=6)
    (data / "train" / "NORMAL" / "IM-0000-0000.png").rename(data / "train" / "NORMAL" / "nobody.png")
    assert "--allow-ungrouped" in chestx("split", data, "--study", study).err
    refused = chestx("split", data, "--study", study, "--allow-ungrouped")
    assert refused.code == 1
    assert "train/PNEUMONIA/person2_virus_2.png and val/PNEUMONIA/person2_virus_2.png: same file" in refused.err
    assert "a patient with 1 in train (train/PNEUMONIA/person2_virus_2.png), 1 in val (val/PNEUM" in refused.err
    assert "patient person2_virus" not in refused.err
    assert not study.exists()
    made = chestx("split", data, "--study", study, "--allow-ungrouped", "--allow-leakage", "--json").json()
    stamps = "LEAKED, UNGROUPED 1 of 36 images"
    assert made["audit"]["stamps"] == stamps.split(", ")
    assert made["audit"]["unmatched"] == [{"image_id": "img-000005"}]
    assert chestx("train", "--study", study, *TINY, "--epochs", "1").code == 0
    notes = chestx("evaluate", "--study", study, "--json").json()["notes"]
    assert any("LEAKED" in note and "patients" in note for note in notes)
    assert any("LEAKED" in note and "image files" in note for note in notes)
    assert any("UNGROUPED" in note and "1 of 36 images" in note for note in notes)
    for words in (
        ("train", *TINY, "--epochs", "1", "--name", "second"),
        ("prune", "--method", "oneshot"),
        ("sensitivity", "--amounts", "0.5"),
        ("evaluate",),
        ("compare", "baseline", "oneshot-50"),
        ("report",),
    ):
        outcome = chestx(*words, "--study", study, "--full")
        assert outcome.code == 0, outcome.err
        # Whatever is printed between two empty lines, but for the sentences at the end, is a table.
        first, *blocks = outcome.out.strip().split("\n\n")
        tables = [block for block in blocks if not block.startswith("  ")]
        # One epoch is too few to be shown to have learned anything.
        assert first.splitlines()[1] == f"{stamps}, UNPROVEN", outcome.out
        assert all(f"{stamps}, UNPROVEN" in block.splitlines()[:2] for block in tables), outcome.out
    page = (study / "report" / "report.md").read_text()
    captions = [line for line in page.split("## Settings")[0].splitlines() if line.startswith("**")][1:]
    tables = [line for line in captions if page.split(line)[1].lstrip().startswith("|")]
    assert len(tables) > 15
    stamped = (f"**{stamps}: ", f"**{stamps}, UNPROVEN: ")
    assert [line for line in tables if not line.startswith(stamped)] == []
    assert f"{stamps}, UNPROVEN: " in (study / "report" / "figures" / "confusion-matrices.svg").read_text()


def test_the_study_inside_the_data_is_no_class(chestx: Chestx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_images(tmp_path / "data")
    monkeypatch.chdir(data)
    for _ in range(2):
        outcome = chestx("split", ".")
        assert outcome.code == 0, outcome.err


def test_large_patients_do_not_empty_a_part() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(60), rng.integers(6, 18, 60))
        labels = (groups % 2).astype(np.int64)
        parts = stratified_group_split(labels, groups, (70, 15, 15), rng)
        for label in (0, 1):
            shares = np.bincount(parts[labels == label], minlength=3) / (labels == label).sum()
            assert shares == pytest.approx([0.7, 0.15, 0.15], abs=0.04)
