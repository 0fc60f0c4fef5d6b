"""Folder layouts found in practice: parts, classes, masks, clutter, studies; and the reported decisions."""

from __future__ import annotations

import random
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chestx_cli.core.errors import DataError
from chestx_cli.data.images.sniffing import BY_CONTENT
from chestx_cli.data.sources.listing import Listing, find_images
from chestx_cli.data.sources.manifest_files import Wish
from chestx_cli.data.sources.names import class_key, holds_masks, is_finding, is_health, part_of
from conftest import TINY, Chestx, draw_image, write_images
from tools.reliability.drawn_layouts import draw_layout
from tools.reliability.drawn_tables import draw_table
from tools.reliability.groups.layouts import fault_of, fault_of_table

CASES = Path(__file__).parents[3] / "shared" / "cases"


def touch(root: Path, *names: str) -> Path:
    """Make files of these names; for finding images, names are enough."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def listed(data: Path, **wish: Any) -> Listing:
    return find_images(data, leave_out=data / "study", wish=Wish(**wish))


def places(listing: Listing) -> dict[str, tuple[str, str | None]]:
    parts = listing.parts or (None,) * len(listing.paths)
    return dict(zip(listing.paths, zip(listing.labels, parts, strict=True), strict=True))


def said(listing: Listing) -> set[tuple[str, str]]:
    return {(row.matter, row.taken_as) for row in listing.taken}


def left_out(listing: Listing) -> dict[tuple[str, str], int]:
    return {key: n for key, n in listing.sifted.items() if key[1] != BY_CONTENT}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_drawn_layouts_are_read_as_they_were_made(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    layout = draw_layout(random.Random(seed))  # noqa: S311 - drawn by the test
    assert fault_of(layout, tmp_path_factory.mktemp("drawn") / "layout") == ""


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_drawn_manifests_are_read_as_they_were_written(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    table = draw_table(random.Random(seed))  # noqa: S311 - drawn by the test
    assert fault_of_table(table, tmp_path_factory.mktemp("drawn") / "m.csv") == ""


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (("Training", "Testing"), ("train", "test")),
        (("train", "valid", "test"), ("train", "val", "test")),
        (("TRAIN", "Validation", "Test"), ("train", "val", "test")),
        (("train_set", "val set", "test-images"), ("train", "val", "test")),
        (("TrainImages", "dev", "holdout"), ("train", "val", "test")),
        (("train", "evaluation"), ("train", "test")),
        (("train", "eval", "test"), ("train", "val", "test")),
        (("train1", "train2", "test"), ("train", "train", "test")),
    ],
)
def test_parts_are_known_by_their_common_names(tmp_path: Path, names: tuple[str, ...], parts: tuple[str, ...]) -> None:
    data = touch(tmp_path / "data", *(f"{name}/{label}/a.png" for name in names for label in ("NORMAL", "PNEUMONIA")))
    found = listed(data)
    assert found.classes == ("NORMAL", "PNEUMONIA")
    expected = {
        f"{name}/{label}/a.png": (label, part)
        for name, part in zip(names, parts, strict=True)
        for label in found.classes
    }
    assert places(found) == expected
    # What is not called train, val or test itself is said, once each.
    assert said(found) == {
        ("Part", f"{name}/ is {part}") for name, part in zip(names, parts, strict=True) if name.lower() != part
    }
    anew = listed(data, resplit=True)
    assert (set(places(anew)), anew.parts) == (set(expected), None)


@pytest.mark.parametrize("name", ["train", "Testing", "valid", "test_images", "eval", "Training Set"])
def test_a_folder_that_looks_like_a_part_is_never_a_class(tmp_path: Path, name: str) -> None:
    data = touch(tmp_path / "data", "PNEUMONIA/a.png", f"{name}/a.png")
    with pytest.raises(DataError, match=f"has parts of a split \\({re.escape(name)}/\\), and beside them PNEUMONIA/"):
        listed(data)
    inner = touch(tmp_path / "inner", *(f"{part}/{x}/a.png" for part in ("train", "test") for x in ("NORMAL", name)))
    with pytest.raises(DataError, match="is among the class folders, but is named like a part of a split"):
        listed(inner)


def test_names_of_parts() -> None:
    for name in ("contrast", "latest", "trainee", "validity", "1", "TB", "test subject", "train_val_test"):
        assert part_of(name) is None, name


def test_masks_beside_films_are_no_films(chestx: Chestx, tmp_path: Path) -> None:
    data = tmp_path / "data"
    rng = np.random.default_rng(1)
    for label in ("Normal", "Viral Pneumonia"):
        for index in range(12):
            for folder in ("images", "masks"):
                path = data / label / folder / f"{label}-{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                draw_image(rng, bright=label != "Normal").save(path)
    outcome = chestx("split", data, "--study", tmp_path / "s", "--allow-ungrouped", "--image-size", 32, "--full")
    assert outcome.code == 0, outcome.err
    assert re.search(r"Images +24 ", outcome.out)
    assert re.search(r"Other files ignored +24 ", outcome.out)
    note = "Of the 24 files of Normal, 12 are left out: 12 × mask, by the name of its folder."
    assert note in outcome.out
    record = chestx("split", data, "--study", tmp_path / "s", "--allow-ungrouped", "--json").json()
    reason = "mask, by the name of its folder"
    assert {"label": "Viral Pneumonia", "reason": reason, "files": 12} in record["left_out"]


@pytest.mark.parametrize(
    "name",
    ["masks", "Mask", "labels", "lung_masks", "Ground Truth", "seg", "infection masks", "annotations", "train_masks"],
)
def test_folders_of_masks_are_known_by_their_common_names(tmp_path: Path, name: str) -> None:
    assert holds_masks(name)
    films = [f"{label}/images/{i}.png" for label in ("NORMAL", "COVID") for i in range(3)]
    inside = touch(tmp_path / "inside", *films, *(film.replace("images", name) for film in films))
    assert list(places(listed(inside))) == sorted(films)
    beside = touch(tmp_path / "beside", "NORMAL/a.png", "COVID/a.png", f"{name}/NORMAL/a.png", f"{name}/COVID/a.png")
    found = listed(beside)
    assert set(places(found)) == {"NORMAL/a.png", "COVID/a.png"}
    assert left_out(found) == {("outside the class folders", "mask, by the name of its folder"): 2}


def test_films_are_not_taken_for_masks() -> None:
    for name in ("unmasked", "images and masks", "images", "COVID", "masked patients", "labelled", "segment 3"):
        assert not holds_masks(name), name


def test_masks_named_after_their_films_are_no_films(tmp_path: Path) -> None:
    data = touch(
        tmp_path / "data",
        *("NORMAL/CHNCXR_0001_0.png", "NORMAL/CHNCXR_0001_0_mask.png", "NORMAL/7-seg.png", "NORMAL/7.png"),
        *("TB/a.png", "TB/b_mask.png"),
    )
    found = listed(data)
    # Without a film that it is the mask of, a file is one by its content only.
    assert set(places(found)) == {"NORMAL/CHNCXR_0001_0.png", "NORMAL/7.png", "TB/a.png", "TB/b_mask.png"}
    assert left_out(found) == {("NORMAL", "mask, named after a film beside it"): 2}


def test_clutter_is_skipped_and_counted(tmp_path: Path) -> None:
    data = touch(
        tmp_path / "data",
        *("NORMAL/a.png", "PNEUMONIA/a.png", "__MACOSX/NORMAL/._a.png", "__MACOSX/x", ".DS_Store", "README.txt"),
        *("NORMAL/.DS_Store", "NORMAL/@eaDir/a.png", ".ipynb_checkpoints/a.png", "stray.png"),
    )
    found = listed(data)
    assert set(places(found)) == {"NORMAL/a.png", "PNEUMONIA/a.png"}
    outside = "outside the class folders"
    assert left_out(found) == {
        (outside, "in a system folder"): 3,
        (outside, "hidden"): 3,
        (outside, "no image"): 1,
        (outside, "image without a class folder"): 1,
    }


def test_a_study_is_never_data(chestx: Chestx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_images(tmp_path / "data", n_normal=12, n_pneumonia=12)
    monkeypatch.chdir(data)
    assert chestx("split", ".", "--image-size", 32).code == 0
    assert chestx("split", ".", "--study", "folds", "--folds", 2, "--image-size", 32).code == 0
    record = chestx("split", ".", "--study", tmp_path / "other", "--image-size", 32, "--json").json()
    assert (record["images"], record["classes"]) == (24, ["NORMAL", "PNEUMONIA"])
    assert {row["reason"] for row in record["left_out"]} == {"in a chestx study"}
    refused = chestx("split", "study", "--study", tmp_path / "x")
    assert (refused.code, "study is a chestx study" in refused.err) == (1, True)
    with pytest.raises(DataError, match=r"no images in .*: it contains a study of chestx"):
        touch(tmp_path / "only", "s/split.json").joinpath("s/split.json").write_text('{"schema": "chestx.split/5"}')
        listed(tmp_path / "only")


@pytest.mark.parametrize("around", ["chest_xray", "a/b/c", "CXR/ChestXRay2017", "images"])
def test_a_single_folder_in_between_is_entered(tmp_path: Path, around: str) -> None:
    plain = touch(tmp_path / "plain", f"{around}/NORMAL/a.png", f"{around}/PNEUMONIA/a.png", "README.md")
    assert {label for label, _ in places(listed(plain)).values()} == {"NORMAL", "PNEUMONIA"}
    assert ("Folder", "one folder level skipped") in said(listed(plain))
    names = [f"{around}/{part}/{label}/a.png" for part in ("train", "val", "test") for label in ("NORMAL", "PNEUMONIA")]
    parts = touch(tmp_path / "parts", *names)
    assert set(places(listed(parts)).values()) == {
        (x, p) for x in ("NORMAL", "PNEUMONIA") for p in ("train", "val", "test")
    }
    # Names of folders may tell a person: they are in no record.
    assert not any(around in taken for _, taken in said(listed(plain)))


def test_a_class_is_never_entered(tmp_path: Path) -> None:
    for label in ("NORMAL", "Tuberculosis"):
        data = touch(tmp_path / label, f"{label}/patient1/a.png", f"{label}/patient2/a.png")
        with pytest.raises(DataError, match=rf"has 1 \({label}\) classes"):
            listed(data)


def test_the_archive_of_the_public_set_repeats_itself(tmp_path: Path) -> None:
    names = [
        f"{part}/{label}/{i}.jpeg"
        for part in ("train", "val", "test")
        for label in ("NORMAL", "PNEUMONIA")
        for i in "12"
    ]
    data = touch(tmp_path / "data", *names, *(f"chest_xray/{name}" for name in names), "__MACOSX/chest_xray/._train")
    found = listed(data)
    assert set(places(found)) == set(names)
    assert left_out(found)["outside the class folders", "in a copy of the parts"] == 12
    touch(data, "chest_xray/train/NORMAL/more.jpeg")
    with pytest.raises(DataError, match="and beside them chest_xray/ with images"):
        listed(data)


def test_parts_inside_of_classes_are_divided_anew_and_said(tmp_path: Path) -> None:
    names = [f"{label}/{part}/a.png" for part in ("train", "test") for label in ("NORMAL", "PNEUMONIA")]
    found = listed(touch(tmp_path / "data", *names))
    assert found.parts is None
    assert said(found) == {("Parts", "not kept: test/, train/ are divided again")}


def test_folders_around_class_folders_are_no_classes(tmp_path: Path) -> None:
    names = [f"{site}/{label}/a.png" for site in ("Leipzig", "Lyon") for label in ("Normal", "Pneumonia")]
    found = listed(touch(tmp_path / "data", *names))
    assert found.classes == ("Normal", "Pneumonia")
    assert said(found) == {("Classes", "folders one level deeper")}
    assert not any("Leipzig" in row.because for row in found.taken)
    # Where names say nothing, the outer folders are the classes, and --positive has to name one.
    unknown = [f"{outer}/{inner}/a.png" for outer in ("foo", "bar") for inner in ("x", "y")]
    assert listed(touch(tmp_path / "unknown", *unknown)).classes == ("bar", "foo")


def test_several_data_sets_are_not_one(tmp_path: Path) -> None:
    names = [
        f"{which}/{part}/{x}/a.png"
        for which in ("Lungs", "Infection")
        for part in ("Train", "Test")
        for x in ("0", "1")
    ]
    data = touch(tmp_path / "data", *names)
    with pytest.raises(
        DataError, match=r"several folders with parts of a split in them: Infection/, Lungs/"
    ) as refused:
        listed(data)
    assert listed(Path(shlex.split(refused.value.remedy)[-1])).classes == ("0", "1")


@pytest.mark.parametrize(
    ("spellings", "one"),
    [(("NORMAL", "Normal", "normal"), "NORMAL"), (("No Finding", "no_finding", "NO-FINDING"), "NO-FINDING")],
)
def test_classes_that_differ_in_letters_alone_are_one(tmp_path: Path, spellings: tuple[str, ...], one: str) -> None:
    names = [f"{part}/{x}/a.png" for part, x in zip(("train", "val", "test"), spellings, strict=True)]
    found = listed(touch(tmp_path / "data", *names, *(f"{part}/PNEUMONIA/a.png" for part in ("train", "val", "test"))))
    assert found.classes == (one, "PNEUMONIA")
    assert [(row.matter, row.taken_as, row.images) for row in found.taken] == [("Class", one, 2)]


@given(st.text(min_size=1), st.sampled_from((str.lower, str.upper, str.title)))
def test_the_key_of_a_class_is_that_of_its_spellings(name: str, spell: Any) -> None:
    assert class_key(class_key(name)) == class_key(name)
    plain = "".join(character for character in name if character.isascii())
    assert class_key(spell(plain)) == class_key(plain)


@pytest.mark.parametrize(
    ("classes", "positive"),
    [
        (("COVID", "Normal"), "COVID"),
        (("NORMAL", "PNEUMONIA"), "PNEUMONIA"),
        (("healthy", "TB"), "TB"),
        (("Opacity", "clear"), "Opacity"),
        (("0", "1"), "1"),
        (("negative", "positive"), "positive"),
        (("No Finding", "Pneumonia"), "Pneumonia"),
        (("non-pneumonia", "PNEUMONIA"), "PNEUMONIA"),
        (("COVID negative", "COVID"), "COVID"),
        (("Not Normal", "Normal"), "Not Normal"),
        (("false", "true"), "true"),
        (("control group", "cases"), "cases"),
        (("COVID", "Pneumonia"), "Pneumonia"),
    ],
)
def test_health_is_never_positive_by_default(
    chestx: Chestx, tmp_path: Path, classes: tuple[str, str], positive: str
) -> None:
    data = write_images(tmp_path / "data", n_normal=9, n_pneumonia=9)
    (data / "NORMAL").rename(data / classes[0])
    (data / "PNEUMONIA").rename(data / classes[1])
    record = chestx("split", data, "--study", tmp_path / "s", "--image-size", 32, "--json").json()
    assert record["positive"] == positive
    rows = [row for row in record["taken"] if row["matter"] == "Positive class"]
    # Said where it is not plain pneumonia against health.
    assert [row["taken_as"] for row in rows] == (
        [] if class_key(positive) == "pneumonia" and "COVID" not in classes else [positive]
    )


@pytest.mark.parametrize(
    "classes", [("bar", "foo"), ("COVID", "Viral Pneumonia"), ("Normal", "healthy"), ("siteA", "siteB")]
)
def test_doubt_about_the_positive_class_is_an_error_that_names_the_option(
    chestx: Chestx, tmp_path: Path, classes: tuple[str, str]
) -> None:
    data = write_images(tmp_path / "data", n_normal=9, n_pneumonia=9)
    (data / "NORMAL").rename(data / classes[0])
    (data / "PNEUMONIA").rename(data / classes[1])
    outcome = chestx("split", data, "--study", tmp_path / "s", "--image-size", 32)
    assert (outcome.code, f"which of {' and '.join(classes)} is positive" in outcome.err) == (1, True)
    commands = re.findall(r'"(chestx [^"]+)"', outcome.err)
    assert [shlex.split(command)[-1] for command in commands] == [classes[1], classes[0]]
    for command in commands:
        assert chestx(*shlex.split(command)[1:], "--force").code == 0


def test_names_of_health_and_of_findings() -> None:
    for name in (
        "NORMAL",
        "normal_lungs",
        "Healthy controls",
        "0",
        "NoFinding",
        "no-pneumonia",
        "TB negative",
        "class 0",
    ):
        assert is_health(name), name
        assert not is_finding(name), name
    for name in ("abnormal", "not normal", "No Lung Opacity / Not Normal", "1", "PNEUMONIA", "covid-19", "sick"):
        assert not is_health(name), name
    assert is_finding("No Lung Opacity / Not Normal")


def kaggle(folder: Path, *, val: bool) -> Path:
    """Write a train/test layout of the public set, with a small val/ of train's patients or without."""
    write_images(folder / "train", n_normal=30, n_pneumonia=30)
    write_images(folder / "test", n_normal=10, n_pneumonia=10, first=500)
    if val:
        for label, name in (("NORMAL", "IM-0000-0001.png"), ("PNEUMONIA", "person0_virus_1.png")):
            path = folder / "train" / label / name
            (folder / "val" / label).mkdir(parents=True)
            path.rename(folder / "val" / label / name)
    return folder


def test_without_val_one_is_drawn_from_train_by_patient(chestx: Chestx, tmp_path: Path) -> None:
    data = kaggle(tmp_path / "data", val=False)
    record = chestx("split", data, "--study", tmp_path / "s", "--image-size", 32, "--json").json()
    table = pd.read_csv(tmp_path / "s" / "split.csv")
    assert table.groupby("group")["split"].nunique().max() == 1
    folder = table["path"].str.split("/").str[0]
    assert (table.loc[folder == "test", "split"] == "test").all()
    drawn = table.loc[folder == "train", "split"]
    assert set(drawn) == {"train", "val"}
    assert (drawn == "val").mean() == pytest.approx(15 / 85, abs=0.05)
    (row,) = (row for row in record["taken"] if row["matter"] == "Part")
    assert (row["taken_as"], row["images"]) == ("val drawn from train, by patient", (drawn == "val").sum())
    assert record["audit"]["stamps"] == []
    # The same again, and another seed draws another.
    again = chestx("split", data, "--study", tmp_path / "s", "--image-size", 32)
    assert (again.code, "already done" in again.err) == (0, True)
    assert chestx("split", data, "--study", tmp_path / "t", "--image-size", 32, "--seed", 1).code == 0
    assert (tmp_path / "t" / "split.csv").read_bytes() != (tmp_path / "s" / "split.csv").read_bytes()
    shutil.move(data / "test" / "NORMAL" / "IM-0500-0000.png", data / "train" / "NORMAL")
    changed = chestx("split", data, "--study", tmp_path / "s", "--image-size", 32)
    assert (changed.code, "1 images added, 1 removed" in changed.err) == (1, True)


def test_the_layout_of_the_public_set_ends_in_a_trained_model(chestx: Chestx, tmp_path: Path) -> None:
    data, at = kaggle(tmp_path / "data", val=True), ("--study", tmp_path / "s")
    words = ("train", data, *at, *TINY, "--epochs", 1)
    refused = chestx(*words)
    assert refused.code == 1
    fact, *examples, remedy = refused.err.strip().splitlines()
    assert fact.endswith("2 leaks, all between train and val; test shares no patient and no image with them:")
    assert len(examples) == 2
    assert remedy.endswith("; then this command again")
    command = next(found for found in re.findall(r'"(chestx [^"]+)"', remedy) if found.endswith("--resplit"))
    assert shlex.split(command)[:3] == ["chestx", "split", str(data)]
    outcome = chestx(*shlex.split(command)[1:])
    assert outcome.code == 0, outcome.err
    table = pd.read_csv(tmp_path / "s" / "split.csv")
    assert table.groupby("group")["split"].nunique().max() == 1
    assert (table["split"] == "val").mean() == pytest.approx(0.15, abs=0.03)
    trained = chestx(*words)
    assert trained.code == 0, trained.err


def test_a_leak_into_val_is_no_leak_into_test(chestx: Chestx, tmp_path: Path) -> None:
    data, study = kaggle(tmp_path / "data", val=True), tmp_path / "s"
    record = chestx("split", data, "--study", study, "--image-size", 32, "--allow-leakage", "--json").json()
    assert record["audit"]["stamps"] == ["LEAKED into val"]
    (said,) = (note for note in record["notes"] if note.startswith("LEAKED"))
    assert "2 patients are in train and val, and not in test" in said
    assert "the test images are unaffected" in said
    # Two images are little to choose an epoch on, and there is a way to more.
    assert any("validation split has 1 image of NORMAL: one image is 100%" in note for note in record["notes"])
    assert any("--resplit" in note for note in record["notes"])
    shutil.copy(data / "train" / "NORMAL" / "IM-0002-0002.png", data / "test" / "NORMAL" / "IM-0002-0002.png")
    refused = chestx("split", data, "--study", tmp_path / "t", "--image-size", 32)
    assert "2 with test and 2 between train and val" in refused.err
    both = chestx("split", data, "--study", tmp_path / "t", "--image-size", 32, "--allow-leakage", "--json").json()
    assert both["audit"]["stamps"] == ["LEAKED", "LEAKED into val"]


def test_folds_of_divided_data_are_made_anew(chestx: Chestx, tmp_path: Path) -> None:
    data = kaggle(tmp_path / "data", val=True)
    words = ("split", data, "--study", tmp_path / "s", "--folds", 3, "--image-size", 32)
    refused = chestx(*words)
    assert (refused.code, "the data are split already" in refused.err) == (2, True)
    (command,) = re.findall(r'"(chestx [^"]+)"', refused.err)
    assert chestx(*shlex.split(command)[1:]).code == 0


def test_new_films_without_labels_get_the_truth_and_the_command(
    chestx: Chestx, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("flat", "inside/images"):
        (tmp_path / folder).mkdir(parents=True)
        for index in range(3):
            draw_image(np.random.default_rng(index), bright=bool(index)).save(tmp_path / folder / f"new {index}.png")
    shutil.copytree(finished, tmp_path / "study")
    for data in ("flat", "inside"):
        refused = chestx("evaluate", "baseline", "--data", data, "--name", "new")
        assert refused.code == 1
        assert f"{data} has 3 images, and no class folders: their labels are unknown" in refused.err
    (predict,) = re.findall(r'"(chestx [^"]+)"', refused.err)
    predicted = chestx(*shlex.split(predict)[1:], "--json")
    assert (predicted.code, predicted.json()["images"]) == (0, 3), predicted.err
    split = chestx("split", "flat", "--study", "other")
    assert "put them into two class folders, or list them in a CSV manifest" in split.err


def test_other_images_may_be_spelled_and_divided_otherwise(chestx: Chestx, finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "chest"
    for part in ("train", "Testing"):
        write_images(other / part, n_normal=4, n_pneumonia=4, first=7000 + 100 * len(part))
        (other / part / "NORMAL").rename(other / part / "Normal")
    shutil.copytree(finished, tmp_path / "s")
    record = chestx("evaluate", "baseline", "--study", tmp_path / "s", "--data", tmp_path / "other", "--json").json()
    assert record["images"] == 16
    assert any(note.startswith("Parts: not kept") for note in record["notes"])


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared inputs are not here")
@pytest.mark.parametrize(
    ("case", "images", "classes"),
    [
        ("04-training-testing-folders/data", 40, ("NORMAL", "PNEUMONIA")),
        ("05-masks-beside-images/data", 40, ("Normal", "Viral Pneumonia")),
        ("06-kaggle-person447/data", 42, ("NORMAL", "PNEUMONIA")),
        ("07-kaggle-layout/train_test", 36, ("NORMAL", "PNEUMONIA")),
        ("07-kaggle-layout/train_val_test", 36, ("NORMAL", "PNEUMONIA")),
        ("11-positive-class-is-normal/data", 40, ("COVID", "Normal")),
        ("12-anonymised-patient-id/data", 40, ("NORMAL", "PNEUMONIA")),
        ("19-small-frictions/macosx", 40, ("NORMAL", "PNEUMONIA")),
        ("19-small-frictions/nested", 40, ("NORMAL", "PNEUMONIA")),
    ],
)
def test_inputs_that_failed_are_found(case: str, images: int, classes: tuple[str, str]) -> None:
    found = listed(CASES / case)
    assert (len(found.paths), found.classes) == (images, classes)


def test_an_image_of_a_link_is_read_where_the_link_is(tmp_path: Path) -> None:
    away = touch(tmp_path / "away", "NORMAL/a.png", "x.png")
    data = touch(tmp_path / "data", "PNEUMONIA/b.png")
    (data / "NORMAL").symlink_to(away / "NORMAL")
    (data / "PNEUMONIA" / "linked.png").symlink_to(away / "x.png")
    (data / "PNEUMONIA" / "around").symlink_to(data)
    assert set(places(listed(data))) == {"NORMAL/a.png", "PNEUMONIA/b.png", "PNEUMONIA/linked.png"}
