"""Patients of images: names of the public data sets, placeholder identifiers, and the sources given by the user."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chestx_cli.core.record import Column
from chestx_cli.data.sources.names import is_nobody
from chestx_cli.data.sources.patients import group_by_name, ids_of_nobody, pathogen_of
from chestx_cli.records.split import UNMATCHED
from conftest import TINY, Chestx, draw_image, write_images
from support.dicom_files import write_dicom


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("person447_virus_921_1.jpeg", "person447_virus"),
        ("person1_bacteria_2.jpeg", "person1_bacteria"),
        ("person1_bacteria_2 (1).jpeg", "person1_bacteria"),
        ("person1_bacteria_2 - Copy.jpeg", "person1_bacteria"),
        ("person12_virus_3_jpeg.rf.0a1b2c3d.jpg", "person12_virus"),
        ("aug_0_person12_virus_3.png", "person12_virus"),
        ("PERSON12_VIRUS_3.JPEG", "person12_virus"),
        ("IM-0115-0001.jpeg", "im-0115"),
        ("IM-0125-0001-0002.jpeg", "im-0125"),
        ("NORMAL2-IM-0135-0001-0002.jpeg", "normal2-im-0135"),
        ("flipped_NORMAL2-IM-0135-0001.jpeg", "normal2-im-0135"),
        ("NORMAL-1003233-0001.jpeg", "edition3-1003233"),
        ("BACTERIA-1003233-0002.jpeg", "edition3-1003233"),
        ("VIRUS-28501-0001.jpeg", "edition3-28501"),
        ("00000013_002.png", "nih-00000013"),
        ("00000013_002_png.rf.0a1b.jpg", "nih-00000013"),
        ("person12_viral_3.jpeg", None),
        ("impression-12.png", None),
        ("12_3.png", None),
        ("00000013_0021.png", None),
        ("trim-01-3.png", None),
    ],
)
def test_names_of_the_public_sets_tell_the_patient(name: str, key: str | None) -> None:
    grouping = group_by_name([f"PNEUMONIA/{name}"])
    assert (grouping.keys[0] if grouping.rules[0] != UNMATCHED else None) == key


@given(
    st.integers(1, 2000), st.sampled_from(("bacteria", "virus")), st.lists(st.integers(0, 9999), min_size=1, max_size=3)
)
def test_whatever_stands_behind_the_pathogen_the_patient_is_the_same(
    person: int, pathogen: str, more: list[int]
) -> None:
    name = f"person{person}_{pathogen}_{'_'.join(map(str, more))}.jpeg"
    assert group_by_name([name]).keys == (f"person{person}_{pathogen}",)
    assert group_by_name([name], strict=True).keys == (f"person{person}",)
    assert pathogen_of(name) == pathogen


def public_names() -> dict[str, list[str]]:
    """Return 5,856 names by part and class as the public paediatric set has them, in its own proportions.

    Patients of pneumonia have up to 30 images; train, val and test share none here.
    """
    rng = np.random.default_rng(5856)
    counts = {"train": (1341, 2530, 1345), "val": (8, 5, 3), "test": (234, 242, 148)}
    names: dict[str, list[str]] = {}
    healthy, person, image = 115, 1, 1
    for part, (normal, bacteria, virus) in counts.items():
        own: list[str] = []
        while len(own) < normal:
            series = "NORMAL2-IM" if rng.random() < 0.5 else "IM"
            films = [
                f"{series}-{healthy:04d}-0001",
                f"{series}-{healthy:04d}-0001-0002",
                f"{series}-{healthy:04d}-0002",
            ]
            own += films[: rng.choice((1, 1, 1, 2, 3))]
            healthy += 1
        names[f"{part}/NORMAL"] = [f"{name}.jpeg" for name in own[:normal]]
        ill: list[str] = []
        for pathogen, wanted in (("bacteria", bacteria), ("virus", virus)):
            found: list[str] = []
            while len(found) < wanted:
                for _ in range(int(rng.choice((1, 1, 2, 3, 5)))):
                    found.append(f"person{person}_{pathogen}_{image}.jpeg")
                    image += 1
                person += 1
            ill += found[:wanted]
        names[f"{part}/PNEUMONIA"] = ill
    # The one name with one number more.
    names["train/PNEUMONIA"][-1] = names["train/PNEUMONIA"][-2].replace(".jpeg", "_1.jpeg")
    return names


def test_every_name_of_the_public_set_is_known() -> None:
    names = [f"{folder}/{name}" for folder, own in public_names().items() for name in own]
    assert (len(names), len(set(names))) == (5856, 5856)
    for strict in (False, True):
        assert group_by_name(names, strict=strict).unmatched == 0


@pytest.mark.slow
def test_the_public_sets_own_layout_from_end_to_end(chestx: Chestx, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    data, at = tmp_path / "chest_xray", ("--study", tmp_path / "s")
    for folder, own in public_names().items():
        (data / folder).mkdir(parents=True)
        for name in own:
            draw_image(rng, bright="PNEUMONIA" in folder, side_px=16).save(data / folder / name)
    # val/ is of train's patients in the set itself.
    for label in ("NORMAL", "PNEUMONIA"):
        for path in sorted((data / "train" / label).iterdir())[1:9]:
            other = sorted((data / "val" / label).iterdir())[0]
            other.unlink()
            path.rename(data / "val" / label / path.name)
    (data / "__MACOSX").mkdir()
    train = ("train", data, *at, *TINY, "--epochs", 1)
    refused = chestx(*train)
    assert "all between train and val; test shares no patient" in refused.err
    command = next(found for found in re.findall(r'"(chestx [^"]+)"', refused.err) if found.endswith("--resplit"))
    record = chestx(*shlex.split(command)[1:], "--json").json()
    assert sum(row["images"] for row in record["rows"]) == record["images"]
    assert record["audit"]["matched_share"] == 1
    assert record["audit"]["stamps"] == []
    table = pd.read_csv(tmp_path / "s" / "split.csv")
    assert table.groupby("group")["split"].nunique().max() == 1
    assert chestx(*train).code == 0
    evaluated = chestx("evaluate", *at, "--by", "pathogen", "--json").json()
    assert {row["subgroup"] for row in evaluated["subgroups"]} == {"bacteria", "virus", "normal"}


def test_one_unknown_image_stamps_its_number_and_not_the_study(chestx: Chestx, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data")
    (data / "NORMAL" / "IM-0000-0000.png").rename(data / "NORMAL" / "nobody.png")
    words = ("split", data, "--study", tmp_path / "s", "--image-size", 32)
    refused = chestx(*words)
    assert "the patient of 1 of 60 images is unknown, such as NORMAL/nobody.png" in refused.err
    (command,) = re.findall(r'"(chestx [^"]+)"', refused.err)
    record = chestx(*shlex.split(command)[1:], "--json").json()
    assert record["stamp"]["data_stamps"] == ["UNGROUPED 1 of 60 images"]
    for path in data.rglob("*.png"):
        path.rename(path.with_name(f"{path.parent.name}{path.stat().st_ino}.png"))
    everything = chestx(*words[:3], tmp_path / "t", "--allow-ungrouped", "--image-size", 32, "--json").json()
    assert everything["stamp"]["data_stamps"] == ["UNGROUPED"]


def test_a_share_below_one_is_never_shown_as_all() -> None:
    column = Column(heading="", spec=".1%")
    assert column.text(5855 / 5856) == "below 100.0%"
    assert [column.text(value) for value in (1.0, 0.998, 0.0)] == ["100.0%", "99.8%", "0.0%"]


def dicoms(folder: Path, *ids: str, n: int = 12) -> Path:
    """Write two classes of DICOM files with these identifiers, in order."""
    rng = np.random.default_rng(3)
    for label in ("NORMAL", "PNEUMONIA"):
        (folder / label).mkdir(parents=True)
        for index in range(n):
            stored = np.asarray(draw_image(rng, bright=label == "PNEUMONIA")).astype(np.uint16)
            patient = ids[index % len(ids)].format(label=label, index=index)
            write_dicom(folder / label / f"pat{index:03d}_{label}.dcm", stored, patient=patient)
    return folder


@pytest.mark.parametrize(
    "ids", [("ANONYMOUS",), ("anon.",), ("000000",), ("Unknown", "N/A"), ("H4711",), ("H4711", "H4711", "H1")]
)
def test_an_identifier_of_nobody_is_no_patient(chestx: Chestx, tmp_path: Path, ids: tuple[str, ...]) -> None:
    data = dicoms(tmp_path / "data", *ids)
    words = ("split", data, "--image-size", 32, "--study")
    refused = chestx(*words, tmp_path / "a")
    assert refused.code == 1
    assert "(DICOM files with a placeholder PatientID: " in refused.err
    assert "H4711" not in refused.err + refused.out
    # Every remedy that the error names works.
    assert [
        word for word in ("--groups FILE.csv", "--group-regex EXPRESSION", "--allow-ungrouped") if word in refused.err
    ]
    (command,) = re.findall(r'"(chestx [^"]+)"', refused.err)
    assert chestx(*shlex.split(command)[1:]).code == 0
    regex = chestx(*words, tmp_path / "b", "--group-regex", r"(pat\d+_[A-Z]+)\.dcm", "--json").json()
    assert (regex["patients"], regex["audit"]["stamps"]) == (24, [])
    table = tmp_path / "groups.csv"
    paths = [path.relative_to(data).as_posix() for path in sorted(data.rglob("*.dcm"))]
    table.write_text("path,group\n" + "".join(f"{path},{path[7:]}\n" for path in paths))
    groups = chestx(*words, tmp_path / "c", "--groups", table, "--json").json()
    assert groups["patients"] == len({path[7:] for path in paths})
    folds = chestx(*words, tmp_path / "d", "--groups", table, "--folds", 3)
    assert folds.code == 0, folds.err
    assert any(row["matter"] == "Patient" and row["taken_as"] == "not from PatientID" for row in groups["taken"])


def test_true_identifiers_are_patients_unless_the_user_says_otherwise(chestx: Chestx, tmp_path: Path) -> None:
    data = dicoms(tmp_path / "data", "{label}-{index}", n=10)
    record = chestx("split", data, "--study", tmp_path / "a", "--image-size", 32, "--json").json()
    assert record["group_rules"] == [{"rule": "DICOM PatientID", "images": 20}]
    assert not any(row["matter"] == "Patient" for row in record["taken"])
    words = ("--group-regex", r"pat00(\d)", "--allow-ungrouped", "--image-size", 32)
    own = chestx("split", data, "--study", tmp_path / "b", *words, "--json").json()
    assert own["group_rules"] == [{"rule": "--group-regex", "images": 20}]
    (row,) = (row for row in own["taken"] if row["matter"] == "Patient")
    assert (row["taken_as"], row["images"]) == ("by --group-regex", 20)
    again = chestx("split", data, "--study", tmp_path / "b", *words)
    assert (again.code, "already done" in again.err) == (0, True)


def test_identifiers_of_nobody() -> None:
    for patient in (
        "ANONYMOUS",
        "Anonymized^",
        "0000",
        "X-X-X",
        "-",
        "N/A",
        "unknown",
        "DE-IDENTIFIED",
        "REMOVED",
        "",
        "None",
    ):
        assert is_nobody(patient), patient
    for patient in ("anon-17", "1", "P0", "A0", "Smith", "0001"):
        assert not is_nobody(patient), patient
    assert ids_of_nobody(["a"] * 6 + ["b"] * 3) == frozenset()
    assert ids_of_nobody(["a"] * 6 + ["b"] * 5) == {"a"}
    assert ids_of_nobody(["a"] * 5 + ["b"] * 5) == frozenset()
    assert ids_of_nobody([None] * 50 + ["a"] * 3) == frozenset()


def test_two_identifiers_for_two_classes_name_the_cause(chestx: Chestx, tmp_path: Path) -> None:
    data = dicoms(tmp_path / "data", "{label}")
    refused = chestx("split", data, "--study", tmp_path / "s", "--image-size", 32)
    assert "has no image of class NORMAL, which has 1 patient (DICOM PatientID)" in refused.err
    assert "--ratios" not in refused.err
    assert "correct the patients with --groups FILE.csv or --group-regex EXPRESSION" in refused.err
    words = ("--group-regex", r"(pat\d+_[A-Z]+)", "--image-size", 32)
    assert chestx("split", data, "--study", tmp_path / "s", *words).code == 0
    folds = chestx("split", data, "--study", tmp_path / "t", "--image-size", 32, "--folds", 2)
    assert "one class has 1 patient, which cannot fill 2 folds" in folds.err
    assert chestx("split", data, "--study", tmp_path / "t", *words, "--folds", 2).code == 0
