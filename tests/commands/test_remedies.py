"""The remedy of every error about data works: commands as printed, prose as described.

A test of the source checks that no error of these modules is missing here.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import chestx_cli
from chestx_cli.cli import adapter
from chestx_cli.core.errors import ChestxError
from conftest import TINY, Chestx, Outcome, draw_image, edit, run_chestx
from tools.reliability.dicom_matrix import dicom

SOURCE = Path(chestx_cli.__file__).parent
MODULES = (
    "data/sources/listing",
    "data/sources/layouts",
    "data/sources/manifest_files",
    "data/sources/spreadsheets",
    "data/sources/label_tables",
    "data/sources/positives",
    "data/sources/patients",
    "data/audit",
    "data/dividing",
    "data/folds",
    "inference/external_images",
    "commands/split",
    "commands/train",
)
Words = tuple[object, ...]
# Does what a remedy says in prose and returns what is typed then.
Follow = Callable[[Path, Words], Words]
# Makes or changes the input of a case.
Make = Callable[[Path], object]
TYPED = re.compile(r'"(chestx [^"]+)"')
SPLIT = ("split", "data", "--image-size", "32")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A test case of an error: how to provoke it, its raise statement, and how to follow each part of its remedy.

    `site` is the module, the function, and which of its raise statements. Commands in quotation marks are typed as they
    stand; `follow` has the other parts of the remedy.
    """

    site: str
    words: Words
    make: Make
    says: str
    follow: dict[str, Follow]


def small(folder: Path, *, normal: str = "NORMAL", positive: str = "PNEUMONIA", first: int = 0) -> Path:
    """Write 24 images of two classes, each with its own patient."""
    rng = np.random.default_rng(7 + first)
    for label, name in ((normal, "IM-{:04d}-0001.png"), (positive, "person{}_virus_1.png")):
        (folder / label).mkdir(parents=True)
        for index in range(12):
            draw_image(rng, bright=label == positive).save(folder / label / name.format(first + index))
    return folder


def manifest(folder: Path, columns: str = "path,label", **more: Callable[[int], object]) -> Path:
    """Write `m.csv` about the images in `data`, with more columns by the number of the image."""
    names = sorted((folder / "data").rglob("*.png"))
    lines = [",".join([columns, *more])]
    for index, path in enumerate(names):
        cells = [path.relative_to(folder).as_posix(), path.parent.name, *(str(value(index)) for value in more.values())]
        lines.append(",".join(cells))
    (folder / "m.csv").write_text("\n".join(lines) + "\n")
    return folder / "m.csv"


def data(folder: Path) -> Path:
    return small(folder / "data")


def images(name: str, *, first: int = 0) -> Make:
    return lambda folder: small(folder / name, first=first)


def each(*steps: Make) -> Make:
    """Return a function that takes all steps in order."""

    def make(folder: Path) -> None:
        for step in steps:
            step(folder)

    return make


def parts(*names: str) -> Make:
    """Return a function that writes parts of a split, each with other patients."""
    return each(*(images(f"data/{name}", first=1000 * index) for index, name in enumerate(names)))


def written(name: str, text: str) -> Make:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    return write


def copied(source: str, target: str) -> Make:
    def copy(folder: Path) -> None:
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / source, folder / target)

    return copy


def piped(name: str) -> Make:
    def make(folder: Path) -> None:
        os.mkfifo(folder / name)

    return make


def thinned(name: str, n: int) -> Make:
    """Return what leaves a folder its first n images."""

    def thin(folder: Path) -> None:
        for path in sorted((folder / name).iterdir())[n:]:
            path.unlink()

    return thin


ONE_PATIENT = written("groups.csv", "path,group\nNORMAL/IM-0000-0001.png,x\n")


def with_manifest(columns: str = "path,label", **more: Callable[[int], object]) -> Make:
    def make(folder: Path) -> None:
        data(folder)
        manifest(folder, columns, **more)

    return make


def line(number: int, text: str) -> Make:
    """Return what writes a manifest one of whose lines is another."""

    def make(folder: Path) -> None:
        with_manifest(group=str)(folder)
        lines = (folder / "m.csv").read_text().splitlines()
        lines[number - 1 : number] = [text] if text else []
        (folder / "m.csv").write_text("\n".join(lines) + "\n")

    return make


def repaired(make: Make) -> Follow:
    """Return what puts the input in order and types the same again."""

    def follow(folder: Path, words: Words) -> Words:
        for name in ("data", "m.csv", "groups.csv"):
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        make(folder)
        return words

    return follow


def changed(change: Make) -> Follow:
    """Return what changes something and types the same again."""

    def follow(folder: Path, words: Words) -> Words:
        change(folder)
        return words

    return follow


def typed(*new: object) -> Follow:
    return lambda _folder, _words: new


def then(step: Make, *new: object) -> Follow:
    """Return what takes a step and types something else."""

    def follow(folder: Path, _words: Words) -> Words:
        step(folder)
        return new

    return follow


def also(*more: object) -> Follow:
    return lambda _folder, words: (*words, *more)


def groups_csv(folder: Path, words: Words) -> Words:
    """Write FILE.csv with a patient for each pair of images, and name it."""
    names = sorted(path for path in (folder / "data").rglob("*") if path.is_file())
    rows = "".join(f"{path.relative_to(folder / 'data').as_posix()},{path.stem}\n" for path in names)
    (folder / "FILE.csv").write_text("path,group\n" + rows)
    return (*words, "--groups", "FILE.csv")


def moved(source: str, target: str) -> Make:
    def move(folder: Path) -> None:
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        (folder / source).rename(folder / target)

    return move


def removed(name: str) -> Make:
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def three(folder: Path) -> None:
    data(folder)
    shutil.copytree(small(folder / "other", first=500) / "NORMAL", folder / "data" / "Fibrosis")


def two_of_three(folder: Path, _words: Words) -> Words:
    path = manifest(folder)
    path.write_text("".join(row for row in path.read_text().splitlines(keepends=True) if "Fibrosis" not in row))
    return ("split", "m.csv", *SPLIT[2:])


def nih(folder: Path) -> None:
    """Make a table of NIH's of the images in `data`, as `m.csv`."""
    data(folder)
    lines = ["Image Index,Finding Labels,Patient ID"]
    for index, path in enumerate(sorted((folder / "data").rglob("*.png"))):
        lines.append(f"{path.name},{'No Finding' if path.parent.name == 'NORMAL' else 'Pneumonia'},{index}")
    (folder / "m.csv").write_text("\n".join(lines) + "\n")


def rsna(folder: Path, *targets: object) -> None:
    """Make a table of RSNA's of the images in `data`, as `m.csv`; the first images have these targets."""
    data(folder)
    names = sorted((folder / "data").rglob("*.png"))
    values = [*targets, *(int(path.parent.name == "PNEUMONIA") for path in names[len(targets) :])]
    lines = [f"{path.stem},{value}\n" for path, value in zip(names, values, strict=True)]
    (folder / "m.csv").write_text("patientId,Target\n" + "".join(lines))


def broken(*names: str) -> Make:
    def make(folder: Path) -> None:
        data(folder)
        for name in names:
            for path in (folder / "data").glob(name):
                path.write_bytes(b"\x89PNG\r\n\x1a\n")

    return make


LATERAL = "data/NORMAL/IM-0900-0001.dcm"


def lateral(folder: Path) -> None:
    """Write images and one more, a DICOM file that is a lateral view."""
    data(folder)
    film = np.asarray(draw_image(np.random.default_rng(3), bright=False))
    (folder / LATERAL).write_bytes(dicom(film, Modality="DX", ViewPosition="LL", PatientID="900"))


def lateral_and_damaged(folder: Path) -> None:
    lateral(folder)
    (folder / "data" / "NORMAL" / "IM-0003-0001.png").write_bytes(b"\x89PNG\r\n\x1a\n")


def two_persons(folder: Path) -> None:
    """Name the positive images as if they were of two patients."""
    data(folder)
    for index, path in enumerate(sorted((folder / "data" / "PNEUMONIA").iterdir())):
        path.rename(path.with_name(f"person{index % 2}_virus_{index}.png"))


def unknown(folder: Path) -> None:
    data(folder)
    (folder / "data" / "NORMAL" / "IM-0003-0001.png").rename(folder / "data" / "NORMAL" / "one.png")


def leaky(folder: Path) -> None:
    """Write a split whose val/ is of train's patients."""
    parts("train", "test")(folder)
    for label in ("NORMAL", "PNEUMONIA"):
        (folder / "data" / "val" / label).mkdir(parents=True)
        path = sorted((folder / "data" / "train" / label).iterdir())[0]
        draw_image(np.random.default_rng(99), bright=label != "NORMAL").save(
            folder / "data" / "val" / label / path.name
        )


def twins(folder: Path) -> None:
    data(folder)
    shutil.copy(folder / "data" / "NORMAL" / "IM-0000-0001.png", folder / "data" / "PNEUMONIA" / "person99_virus_1.png")


def split_made(folder: Path) -> None:
    data(folder)
    assert run_chestx(*SPLIT).code == 0


def folds_made(folder: Path) -> None:
    data(folder)
    assert run_chestx(*SPLIT, "--folds", 3).code == 0


def damaged_manifest(folder: Path) -> None:
    """Damage a split's table so that its record agrees with it."""
    import hashlib

    split_made(folder)
    path = folder / "study" / "split.csv"
    content = path.read_bytes().replace(b",patient_from,", b",told_by,")
    path.write_bytes(content)
    record = folder / "study" / "split.json"
    old = re.search(rb'"split_csv_sha256": "(\w+)"', record.read_bytes())
    assert old
    edit(record, lambda text: text.replace(old[1], hashlib.sha256(content).hexdigest().encode()))


def trained(folder: Path) -> None:
    """Make a study of a folder `own`."""
    small(folder / "own", first=5000)
    outcome = run_chestx("train", "own", *TINY, "--epochs", 1)
    assert outcome.code == 0, outcome.err


EVALUATE = ("evaluate", "baseline", "--data", "data")
PREDICT = ("predict", "m.csv")
OTHERS: Follow = repaired(lambda folder: small(folder / "data", first=700))


def external(make: Make) -> Make:
    def made(folder: Path) -> None:
        trained(folder)
        make(folder)

    return made


def flat(folder: Path) -> None:
    data(folder)
    for path in sorted((folder / "data").rglob("*.png")):
        path.rename(folder / "data" / path.name)
    for label in ("NORMAL", "PNEUMONIA"):
        (folder / "data" / label).rmdir()


def labelled(folder: Path) -> None:
    for path in sorted((folder / "data").glob("*.png")):
        moved(f"data/{path.name}", f"data/{'NORMAL' if path.name.startswith('IM') else 'PNEUMONIA'}/{path.name}")(
            folder
        )


def bundle(_folder: Path, _words: Words) -> Words:
    """Predict with the bundle that the command before has made."""
    import subprocess
    import sys

    assert run_chestx("export", "baseline", "--out", "bundle", "--force").code == 0
    script = [sys.executable, "bundle/chestx_bundle.py", "predict", "data"]
    assert subprocess.run(script, capture_output=True, check=False).returncode == 0
    return ("report",)


CASES = {
    "a folder that is not there": Case(
        site="data/sources/listing.find_images.0",
        words=("split", "nowhere", *SPLIT[2:]),
        make=with_manifest(),
        says="nowhere does not exist",
        follow={
            "give a folder of class folders": typed(*SPLIT),
            "or a CSV manifest": typed("split", "m.csv", "--allow-ungrouped", *SPLIT[2:]),
        },
    ),
    "a folder for a table": Case(
        site="data/sources/listing.find_images.1",
        words=(*SPLIT, "--labels-from", "nih"),
        make=each(nih, moved("m.csv", "data/labels.csv")),
        says="data is a folder, but --labels-from reads a table",
        follow={
            "name the table, as DATA/labels.csv": typed("split", "data/labels.csv", "--labels-from", "nih", *SPLIT[2:])
        },
    ),
    "an archive": Case(
        site="data/sources/listing.find_images.2",
        words=("split", "data.zip", *SPLIT[2:]),
        make=each(data, written("data.zip", "PK")),
        says="data.zip is neither a folder nor a .csv manifest",
        follow={"unpack it, and name the folder": typed(*SPLIT)},
    ),
    "a table without a line": Case(
        site="data/sources/listing.find_images.3",
        words=("split", "m.csv", "--allow-ungrouped", *SPLIT[2:]),
        make=each(data, written("m.csv", "path,label\n")),
        says="no images in m.csv",
        follow={
            "two class folders with images in them": typed(*SPLIT),
            "or a CSV manifest": changed(manifest),
        },
    ),
    "three classes": Case(
        site="data/sources/listing.find_images.4",
        words=SPLIT,
        make=three,
        says="data has 3 (Fibrosis, NORMAL, PNEUMONIA) classes, chestx needs exactly two",
        follow={
            "list the images of two of them in a CSV manifest (path,label)": lambda folder, words: (
                *two_of_three(folder, words),
                "--allow-ungrouped",
            ),
            "or keep two folders": changed(moved("data/Fibrosis", "elsewhere")),
        },
    ),
    "one class": Case(
        site="data/sources/listing.find_images.4",
        words=SPLIT,
        make=each(data, moved("data/NORMAL", "elsewhere")),
        says="data has 1 (PNEUMONIA) classes, chestx needs exactly two",
        follow={"expected two class folders with images in them": changed(moved("elsewhere", "data/NORMAL"))},
    ),
    "a class without images": Case(
        site="data/sources/layouts.add.0",
        words=SPLIT,
        make=each(data, written("data/Third/a.txt", "")),
        says="class folder data/Third has no images, but 1 × no bytes",
        follow={"move this one elsewhere": changed(moved("data/Third", "elsewhere"))},
    ),
    "a study for data": Case(
        site="data/sources/layouts.read_data_folder.0",
        words=("split", "study", "--study", "other", *SPLIT[2:]),
        make=split_made,
        says="study is a chestx study",
        follow={"name the folder of the images": typed(*SPLIT, "--study", "other")},
    ),
    "nothing at all": Case(
        site="data/sources/layouts.read_layout.0",
        words=SPLIT,
        make=lambda folder: (folder / "data").mkdir(),
        says="no images in data",
        follow={"expected two class folders with images in them": repaired(data)},
    ),
    "no class folders": Case(
        site="data/sources/layouts.read_layout.0",
        words=SPLIT,
        make=flat,
        says="data has 24 images, and no class folders: their labels are unknown",
        follow={
            "put them into two class folders": changed(labelled),
            "or list them in a CSV manifest (path,label)": then(
                each(labelled, manifest), *("split", "m.csv", "--allow-ungrouped", "--study", "other", *SPLIT[2:])
            ),
        },
    ),
    "something beside parts": Case(
        site="data/sources/layouts._take_parts.0",
        words=SPLIT,
        make=each(parts("train", "test"), images("data/more", first=9000)),
        says="data has parts of a split (test/, train/), and beside them more/ with images",
        follow={
            "move it elsewhere": changed(moved("data/more", "elsewhere")),
            "or give a CSV manifest (path,label,split)": then(
                lambda folder: manifest(folder, split=lambda i: ("train", "test", "val")[i % 3]),
                *("split", "m.csv", "--allow-ungrouped", "--study", "other", *SPLIT[2:]),
            ),
        },
    ),
    "a part without labels": Case(
        site="data/sources/layouts._take_part.0",
        words=SPLIT,
        make=each(parts("train"), images("x", first=800), moved("x/NORMAL", "data/test")),
        says="data/test has 12 images, and no class folders: their labels are unknown",
        follow={"move them into class folders": changed(each(removed("data/test"), images("data/test", first=800)))},
    ),
    "a split without test": Case(
        site="data/sources/layouts._require_parts.0",
        words=SPLIT,
        make=parts("train", "val"),
        says="data is split already (train/, val/), but has no test/",
        follow={"add what is missing": changed(images("data/test", first=800))},
    ),
    "a class called as a part": Case(
        site="data/sources/layouts._class_folders.0",
        words=SPLIT,
        make=each(parts("train", "test"), moved("data/train/NORMAL", "data/train/images")),
        says="data/train/images is among the class folders, but is named like any folder of images",
        follow={"rename it if it is a class": changed(moved("data/train/images", "data/train/NORMAL"))},
    ),
    "several data sets": Case(
        site="data/sources/layouts._class_folders.1",
        words=SPLIT,
        make=each(
            images("data/a/train"), images("data/a/test", first=50), images("data/b/train"), images("data/b/test")
        ),
        says="data has several folders with parts of a split in them: a/, b/",
        follow={"name one of them, as data/a": typed("split", "data/a", *SPLIT[2:])},
    ),
    "NIH's table": Case(
        site="data/sources/manifest_files.read_manifest.0",
        words=("split", "m.csv", *SPLIT[2:]),
        make=nih,
        says="m.csv is not a manifest: its columns are those of NIH ChestX-ray",
        follow={},
    ),
    "other columns": Case(
        site="data/sources/manifest_files.read_manifest.1",
        words=("split", "m.csv", "--allow-ungrouped", *SPLIT[2:]),
        make=with_manifest("file,class"),
        says="manifest m.csv lacks the column path and label; it has file, class",
        follow={"it must have path,label": changed(manifest)},
    ),
    "an empty cell": Case(
        site="data/sources/manifest_files._of_user.0",
        words=("split", "m.csv", *SPLIT[2:]),
        make=line(3, "data/NORMAL/IM-0001-0001.png,NORMAL,"),
        says="manifest m.csv has no group in line 3",
        follow={"fill it in": repaired(with_manifest(group=str))},
    ),
    "a line twice": Case(
        site="data/sources/manifest_files._require_once.0",
        words=("split", "m.csv", *SPLIT[2:]),
        make=line(3, "./data/NORMAL/IM-0000-0001.png,NORMAL,0"),
        says="manifest m.csv lists data/NORMAL/IM-0000-0001.png twice (lines 2 and 3)",
        follow={"remove one of the lines": repaired(line(3, ""))},
    ),
    "no hash": Case(
        site="data/sources/manifest_files._hashes_of.0",
        words=("split", "m.csv", "--unread", *SPLIT[2:]),
        make=with_manifest(group=str, sha256=lambda i: f"{i:064x}"[1 if i == 2 else 0 :]),
        says="manifest m.csv has no sha256 in line 4",
        follow={"it must be 64 hex digits": repaired(with_manifest(group=str, sha256=lambda i: f"{i:064x}"))},
    ),
    "another part": Case(
        site="data/sources/manifest_files._parts_of.0",
        words=("split", "m.csv", *SPLIT[2:]),
        make=with_manifest(group=str, split=lambda i: ("train", "fold3", "test")[i % 3]),
        says="manifest m.csv has the split 'fold3' in line 3",
        follow={
            "write train, val or test": repaired(
                with_manifest(group=str, split=lambda i: ("train", "val", "test")[i % 3])
            )
        },
    ),
    "no part to test": Case(
        site="data/sources/manifest_files._parts_of.1",
        words=("split", "m.csv", *SPLIT[2:]),
        make=with_manifest(group=str, split=lambda i: ("train", "val")[i % 2]),
        says="manifest m.csv has a column split, but no image in test",
        follow={"add them": repaired(with_manifest(group=str, split=lambda i: ("train", "val", "test")[i % 3]))},
    ),
    "another public set's table": Case(
        site="data/sources/manifest_files._of_public_set.0",
        words=("split", "m.csv", "--labels-from", "rsna", *SPLIT[2:]),
        make=nih,
        says="it lacks the column 'patientid'",
        follow={"give --labels-from nih": typed("split", "m.csv", "--labels-from", "nih", *SPLIT[2:])},
    ),
    "an own table for a public set's": Case(
        site="data/sources/manifest_files._of_public_set.0",
        words=("split", "m.csv", "--labels-from", "rsna", *SPLIT[2:]),
        make=with_manifest(group=str),
        says="it lacks the column 'patientid'",
        follow={"leave --labels-from out for a manifest of your own": typed("split", "m.csv", *SPLIT[2:])},
    ),
    "a table far from its images": Case(
        site="data/sources/manifest_files._of_public_set.1",
        words=("split", "away/m.csv", "--labels-from", "nih", *SPLIT[2:]),
        make=each(nih, moved("m.csv", "away/m.csv")),
        says="none of the 24 images that away/m.csv lists is below away/",
        follow={
            "put the table into the folder of its images": then(
                moved("away/m.csv", "data/m.csv"), "split", "data/m.csv", "--labels-from", "nih", *SPLIT[2:]
            )
        },
    ),
    "an image of which there are two": Case(
        site="data/sources/manifest_files._place.0",
        words=("split", "m.csv", "--labels-from", "nih", *SPLIT[2:]),
        make=each(nih, copied("data/NORMAL/IM-0000-0001.png", "copy/IM-0000-0001.png")),
        says="may both be the image IM-0000-0001.png",
        follow={"move one of them elsewhere": changed(removed("copy"))},
    ),
    "a table that is none": Case(
        site="data/sources/spreadsheets.read_sheet.1",
        words=("split", "m.csv", *SPLIT[2:]),
        make=line(4, "a,b,c,d,e,f"),
        says="cannot read manifest m.csv: line 4 has 6 fields, the heading has 3",
        follow={"it must be CSV or Parquet; it must have path,label": repaired(with_manifest(group=str))},
    ),
    "a pipe": Case(
        site="data/sources/spreadsheets.read_sheet.0",
        words=("split", "m.csv", *SPLIT[2:]),
        make=each(data, piped("m.csv")),
        says="cannot read manifest m.csv: not a regular file",
        follow={"it must be CSV": repaired(with_manifest(group=str))},
    ),
    "a column twice": Case(
        site="data/sources/spreadsheets._sheet.0",
        words=("split", "m.csv", "--allow-ungrouped", *SPLIT[2:]),
        make=lambda folder: with_manifest(label=lambda _: "NORMAL")(folder),
        says="manifest m.csv has the column 'label' twice",
        follow={"remove one of them": repaired(with_manifest())},
    ),
    "a finding that nobody has": Case(
        site="data/sources/label_tables._read_nih.0",
        words=("split", "m.csv", "--labels-from", "nih", "--positive", "Fibrosis", *SPLIT[2:]),
        make=nih,
        says="no image of the table has the finding 'Fibrosis'",
        follow={
            "name one of its findings with --positive: Pneumonia": typed(
                "split", "m.csv", "--labels-from", "nih", "--positive", "Pneumonia", *SPLIT[2:]
            )
        },
    ),
    "a finding of another set": Case(
        site="data/sources/label_tables._read_rsna.0",
        words=("split", "m.csv", "--labels-from", "rsna", "--positive", "Effusion", *SPLIT[2:]),
        make=rsna,
        says="RSNA's table has no finding 'Effusion'",
        follow={"leave --positive out": typed("split", "m.csv", "--labels-from", "rsna", *SPLIT[2:])},
    ),
    "no target": Case(
        site="data/sources/label_tables._read_rsna.1",
        words=("split", "m.csv", "--labels-from", "rsna", *SPLIT[2:]),
        make=lambda folder: rsna(folder, 7),
        says="RSNA's table has no 0 or 1 as Target in line 2",
        follow={"correct it": repaired(rsna)},
    ),
    "a positive class that is not there": Case(
        site="data/sources/positives.positive_class.0",
        words=(*SPLIT, "--positive", "Covid"),
        make=data,
        says="--positive 'Covid' is not a class",
        follow={"choose one of NORMAL, PNEUMONIA": typed(*SPLIT, "--positive", "PNEUMONIA")},
    ),
    "two classes without a meaning": Case(
        site="data/sources/positives.positive_class.1",
        words=SPLIT,
        make=lambda folder: small(folder / "data", normal="bar", positive="foo"),
        says="the class names do not show which of bar and foo is positive",
        follow={},
    ),
    "a table of patients without columns": Case(
        site="data/sources/patients.read_groups.0",
        words=(*SPLIT, "--groups", "groups.csv"),
        make=each(data, written("groups.csv", "a,b\n1,2\n")),
        says="groups.csv lacks the column path or group",
        follow={"it must be CSV or Parquet with the columns path,group": changed(ONE_PATIENT)},
    ),
    "a patient without a name": Case(
        site="data/sources/patients.read_groups.1",
        words=(*SPLIT, "--groups", "groups.csv"),
        make=each(data, written("groups.csv", "path,group\nNORMAL/IM-0000-0001.png,\n")),
        says="groups.csv has no group in line 2",
        follow={"fill it in": changed(ONE_PATIENT)},
    ),
    "two patients for one image": Case(
        site="data/sources/patients.read_groups.2",
        words=(*SPLIT, "--groups", "groups.csv"),
        make=each(data, written("groups.csv", "path,group\nNORMAL/IM-0000-0001.png,x\n./NORMAL/IM-0000-0001.png,y\n")),
        says="groups.csv lists NORMAL/IM-0000-0001.png twice",
        follow={"remove one of the lines": changed(ONE_PATIENT)},
    ),
    "patients of other images": Case(
        site="data/sources/patients.read_groups.3",
        words=(*SPLIT, "--groups", "groups.csv"),
        make=each(data, written("groups.csv", "path,group\nelsewhere.png,x\n")),
        says="groups.csv has the patient of none of the images, such as NORMAL/IM-0000-0001.png",
        follow={"paths are relative to the data, as NORMAL/a.png": changed(ONE_PATIENT)},
    ),
    "two sources of patients": Case(
        site="data/sources/patients.grouping_of.0",
        words=("split", "m.csv", "--group-regex", r"(\d+)", *SPLIT[2:]),
        make=with_manifest(group=str),
        says="the manifest has a group column, and --group-regex was given",
        follow={"use one of them": typed("split", "m.csv", *SPLIT[2:])},
    ),
    "no regular expression": Case(
        site="data/sources/patients._regex_rule.0",
        words=(*SPLIT, "--group-regex", "("),
        make=data,
        says="--group-regex '(' is not a regular expression",
        follow={"correct it, as in": typed(*SPLIT, "--group-regex", r"(?:person|IM-)(\d+)")},
    ),
    "an expression without a group": Case(
        site="data/sources/patients._regex_rule.1",
        words=(*SPLIT, "--group-regex", r"person\d+"),
        make=data,
        says=r"has no group",
        follow={"put the patient's part in parentheses": typed(*SPLIT, "--group-regex", r"(?:person|IM-)(\d+)")},
    ),
    "damaged images": Case(
        site="data/audit.look_at_images.0",
        words=SPLIT,
        make=broken("NORMAL/IM-0003-0001.png"),
        says="1 image cannot be read",
        follow={"repair or remove them": changed(removed("data/NORMAL/IM-0003-0001.png"))},
    ),
    "lateral views": Case(
        site="data/audit.look_at_images.0",
        words=SPLIT,
        make=lateral,
        says="a lateral view, by its ViewPosition",
        follow={'--allow-lateral" takes them; or "': changed(removed(LATERAL))},
    ),
    "lateral views for a training": Case(
        site="data/audit.look_at_images.0",
        words=("train", "data", *TINY, "--epochs", "1"),
        make=lateral,
        says="a lateral view, by its ViewPosition",
        follow={},
    ),
    "lateral views and damaged images": Case(
        site="data/audit.look_at_images.0",
        words=SPLIT,
        make=lateral_and_damaged,
        says="2 images cannot be read",
        follow={"repair or remove them": changed(each(removed("data/NORMAL/IM-0003-0001.png"), removed(LATERAL)))},
    ),
    "a class of damaged images": Case(
        site="data/audit.look_at_images.1",
        words=(*SPLIT, "--skip-bad"),
        make=broken("NORMAL/*.png"),
        says="only 12 images can be read, all of class PNEUMONIA",
        follow={"repair those of the other class": repaired(data)},
    ),
    "one image under two labels": Case(
        site="data/audit.join.0",
        words=SPLIT,
        make=twins,
        says="images under two labels are the same file or have the same pixels (1 pair)",
        follow={"remove the wrong one of each pair": changed(removed("data/PNEUMONIA/person99_virus_1.png"))},
    ),
    "an unknown patient": Case(
        site="data/audit.require_patients.0",
        words=SPLIT,
        make=unknown,
        says="the patient of 1 of 24 images is unknown, such as NORMAL/one.png",
        follow={
            "give --groups FILE.csv with the columns path,group": groups_csv,
            "or --group-regex EXPRESSION": also("--group-regex", r"([^/]+)\.png"),
        },
    ),
    "a leak": Case(
        site="data/audit.require_no_leak.0",
        words=SPLIT,
        make=leaky,
        says="the given split has 2 leaks, all between train and val",
        follow={},
    ),
    "uneven shares": Case(
        site="data/dividing._require_classes.0",
        words=(*SPLIT, "--ratios", "96/2/2"),
        make=each(data, thinned("data/PNEUMONIA", 4)),
        says="has no image of class NORMAL, which has 12 patients",
        follow={},
    ),
    "too few patients for three parts": Case(
        site="data/dividing._require_classes.0",
        words=SPLIT,
        make=two_persons,
        says="has no image of class PNEUMONIA, which has 2 patients (paediatric pneumonia)",
        follow={
            "add patients": changed(each(images("more", first=500), moved("more/PNEUMONIA", "data/PNEUMONIA/more"))),
            "or correct the patients with --groups FILE.csv": groups_csv,
            "or --group-regex EXPRESSION": also("--group-regex", r"([^/]+)\.png"),
        },
    ),
    "a given part without a class": Case(
        site="data/dividing._require_classes.0",
        words=SPLIT,
        make=each(parts("train", "val", "test"), removed("data/val/NORMAL")),
        says="the val split has no image of class NORMAL",
        follow={},
    ),
    "no val to be drawn": Case(
        site="data/dividing._require_classes.0",
        words=(*SPLIT, "--seed", "1"),
        make=each(parts("train", "test"), thinned("data/train/NORMAL", 1)),
        says="split has no image of class NORMAL",
        follow={},
    ),
    "too many folds for a class": Case(
        site="data/folds.draw_folds.0",
        words=(*SPLIT, "--folds", "20"),
        make=data,
        says="one class has 12 patients, which cannot fill 20 folds",
        follow={"use fewer --folds": typed(*SPLIT, "--folds", "3")},
    ),
    "shares that are none": Case(
        site="commands/split.split.0",
        words=(*SPLIT, "--ratios", "70/30"),
        make=data,
        says="--ratios 70/30 must be three shares that sum to 100",
        follow={},
    ),
    "folds without training": Case(
        site="commands/split.split.1",
        words=(*SPLIT, "--folds", "2", "--ratios", "40/50/10"),
        make=data,
        says="--folds 2 leaves nothing to train on with 50 % for validation",
        follow={},
    ),
    "folds of a given split": Case(
        site="commands/split._make.0",
        words=(*SPLIT, "--folds", "2"),
        make=parts("train", "val", "test"),
        says="--folds is given, and the data are split already",
        follow={},
    ),
    "unread folders": Case(
        site="commands/split._unread_listing.0",
        words=(*SPLIT, "--unread"),
        make=data,
        says="--unread needs facts that only the images contain",
        follow={
            "give a manifest with the columns path,label,group,sha256": then(
                lambda folder: manifest(folder, group=str, sha256=lambda i: f"{i:064x}"),
                "split",
                "m.csv",
                "--unread",
                *SPLIT[2:],
            )
        },
    ),
    "folds of a study": Case(
        site="commands/split._existing.0",
        words=SPLIT,
        make=folds_made,
        says="study/ was divided into folds",
        follow={"begin another study with --study DIR": also("--study", "DIR")},
    ),
    "fewer folds than before": Case(
        site="commands/split._existing.1",
        words=(*SPLIT, "--folds", "2", "--force"),
        make=folds_made,
        says="study/fold-3/ is left of a division into more folds",
        follow={"remove it": changed(removed("study/fold-3")), "or use --study DIR": also("--study", "DIR")},
    ),
    "other options": Case(
        site="commands/split._existing.2",
        words=(*SPLIT, "--seed", "7"),
        make=split_made,
        says="study/ has a split made with other options (seed: 42 -> 7)",
        follow={"--study DIR begins another study": also("--study", "DIR")},
    ),
    "a damaged table of the split": Case(
        site="commands/split._existing.3",
        words=SPLIT,
        make=damaged_manifest,
        says="study/split.csv is damaged",
        follow={"--study DIR begins another study": also("--study", "DIR")},
    ),
    "other images": Case(
        site="commands/split._existing.4",
        words=SPLIT,
        make=each(split_made, removed("data/NORMAL/IM-0003-0001.png")),
        says="data has changed since the split: 0 images added, 1 removed",
        follow={"--study DIR begins another study": also("--study", "DIR")},
    ),
    "nothing to train on": Case(
        site="commands/train._require_images.0",
        words=("train", *TINY, "--epochs", 1),
        make=data,
        says="no split in study/",
        # DATA stands for the folder.
        follow={"name the images": typed("train", "data", *TINY, "--epochs", 1)},
    ),
    "mixing images in two processes": Case(
        site="commands/train._require_whole_batches.0",
        words=("train", *TINY, "--epochs", 1, "--batch-size", 16, "--processes", 2, "--mixup", 0.2),
        make=split_made,
        says="--mixup mixes images of a whole batch",
        follow={},
    ),
    "averaged weights with --sync-batchnorm": Case(
        site="commands/train._require_possible_fit.0",
        words=("train", *TINY, "--epochs", 1, "--ema", 0.9, "--sync-batchnorm"),
        make=split_made,
        says="--ema estimates BatchNorm statistics itself",
        follow={},
    ),
    "training again without weights": Case(
        site="commands/train._found_weights.0",
        words=("train", "--backbone", "resnet18", "--image-size", "32", "--epochs", "1"),
        make=trained,
        says="variant baseline exists already, and the ImageNet weights of resnet18 are not on this machine",
        follow={},
    ),
    "predicting a table without paths": Case(
        site="data/sources/manifest_files.listed_paths.0",
        words=PREDICT,
        make=external(with_manifest("file,label")),
        says="table m.csv lacks the column path; it has file, label",
        follow={"it must have a column path": changed(manifest)},
    ),
    "predicting a table with an empty path": Case(
        site="data/sources/manifest_files.listed_paths.1",
        words=PREDICT,
        make=external(line(3, ",NORMAL,1")),
        says="table m.csv has no path in line 3",
        follow={"fill it in": changed(manifest)},
    ),
    "predicting an empty table": Case(
        site="data/sources/manifest_files.listed_paths.2",
        words=PREDICT,
        make=external(each(data, written("m.csv", "path\n"))),
        says="no images in m.csv",
        follow={"it has no line below its heading": changed(manifest)},
    ),
    "training on other images": Case(
        site="commands/train._require_split.0",
        words=("train", "own", *TINY, "--epochs", 1),
        make=each(split_made, images("own", first=300)),
        says="study/ has a split of other images than own",
        follow={
            "leave own out": typed("train", *TINY, "--epochs", 1),
            "or begin another study with --study DIR": also("--study", "DIR"),
        },
    ),
    "training on a leak": Case(
        site="data/audit.require_no_leak.0",
        words=("train", "data", *TINY, "--epochs", 1),
        make=leaky,
        says="the given split has 2 leaks, all between train and val",
        follow={},
    ),
    "evaluating what has no labels": Case(
        site="inference/external_images._listing.0",
        words=EVALUATE,
        make=external(flat),
        says="data has 24 images, and no class folders: their labels are unknown",
        follow={"put them into class folders to evaluate on them": changed(labelled), "predict data": bundle},
    ),
    "evaluating other classes": Case(
        site="inference/external_images._listing.1",
        words=EVALUATE,
        make=external(lambda folder: small(folder / "data", normal="Healthy", first=700)),
        says="data has the classes Healthy, PNEUMONIA, the study has NORMAL, PNEUMONIA",
        follow={"name its class folders as the study's are named": changed(moved("data/Healthy", "data/NORMAL"))},
    ),
    "evaluating nothing readable": Case(
        site="inference/external_images._compared.0",
        words=EVALUATE,
        make=external(broken("*/*.png")),
        says="no image of data can be read (the first: ",
        follow={
            "repair them": OTHERS,
            "or name others": then(images("others", first=800), "evaluate", "baseline", "--data", "others"),
        },
    ),
    "evaluating what was trained on": Case(
        site="inference/external_images._compared.1",
        words=("evaluate", "baseline", "--data", "own"),
        make=trained,
        says="of own are in the study's training or validation split too",
        follow={"remove them": then(images("data", first=700), *EVALUATE)},
    ),
}


def sites_of(module: str) -> dict[str, range]:
    """Return the raise statements of a module that make an error, by function and number, with their lines."""
    found: dict[str, range] = {}
    tree = ast.parse((SOURCE / f"{module}.py").read_text())
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        raises = [node for node in ast.walk(function) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
        for number, node in enumerate(sorted(raises, key=lambda node: node.lineno)):
            found[f"{module}.{function.name}.{number}"] = range(node.lineno, (node.end_lineno or node.lineno) + 1)
    return found


def test_every_error_about_data_has_its_remedy_followed() -> None:
    sites = {site for module in MODULES for site in sites_of(module)}
    assert {case.site for case in CASES.values()} == sites


@pytest.mark.parametrize("name", CASES)
def test_every_remedy_works(name: str, chestx: Chestx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    met: list[Exception] = []
    expected = adapter._expected

    def remembered(error: Exception) -> ChestxError:
        met.append(error)
        return expected(error)

    monkeypatch.setattr(adapter, "_expected", remembered)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no-weights"))
    place = iter(range(100))

    def meet() -> tuple[Path, Outcome]:
        folder = tmp_path / str(next(place))
        folder.mkdir()
        monkeypatch.chdir(folder)
        case.make(folder)
        met.clear()
        return folder, chestx(*case.words)

    _, outcome = meet()
    assert outcome.code in (1, 2)
    assert case.says in outcome.err, outcome.err
    assert isinstance(met[0], ChestxError)
    assert raised_at(met[0]) in sites_of(case.site.rsplit(".", 2)[0])[case.site]
    remedy = met[0].remedy
    commands = [shlex.split(found)[1:] for found in TYPED.findall(remedy) if "DATA" not in found]
    assert commands or case.follow
    # Each on its own, as it is a way out by itself.
    for words in commands:
        meet()
        followed = chestx(*words)
        assert followed.code == 0, (words, followed.err)
        if remedy.endswith("; then this command again"):
            assert chestx(*case.words).code == 0
    for phrase, follow in case.follow.items():
        assert phrase in remedy, remedy
        folder, _ = meet()
        followed = chestx(*follow(folder, case.words))
        assert followed.code == 0, (phrase, followed.err)


def raised_at(error: Exception) -> int:
    """Return the line at which an error was raised, in the innermost frame of the package."""
    trace = error.__traceback__
    line_number = 0
    while isinstance(trace, types.TracebackType):
        if Path(trace.tb_frame.f_code.co_filename).is_relative_to(SOURCE):
            line_number = trace.tb_lineno
        trace = trace.tb_next
    return line_number
