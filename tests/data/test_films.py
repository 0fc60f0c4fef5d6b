"""Properties of decoded images: inverted images, masks, few grey levels, uniform images; detection by content."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw, ImageFilter

from chestx_cli.data.images.decoding import decode_grey
from chestx_cli.data.images.films import AIR_BRIGHT, AIR_DARK, AIR_UNDECIDED, air_of
from chestx_cli.data.images.formats.refusals import MAX_DETAILS, UnreadableImageError, grouped
from chestx_cli.data.images.sniffing import BY_CONTENT, sift
from chestx_cli.data.scanning import thumbnail
from chestx_cli.data.synthetic.sets import write_synthetic_set
from chestx_cli.records.preprocessing import Preprocessing
from conftest import TINY, Chestx, write_images
from support.beside import SHARED
from support.bundle_script import run_script
from tools.reliability.dicom_matrix import dicom

KERMANY = SHARED / "data" / "kermany-378"
SIDE = 64
PIXELS = np.random.default_rng(2).integers(0, 4096, (40, 48)).astype(np.uint16)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return synthetic films; tests must not change them."""
    out = tmp_path_factory.mktemp("films") / "data"
    write_synthetic_set(out, images=60, seed=8, size_px=96)
    return out


def inverted(path: Path) -> None:
    """Turn an image file into its negative."""
    grey = np.asarray(Image.open(path).convert("L"))
    Image.fromarray(255 - grey).save(path)


def images_of(data: Path) -> list[Path]:
    """Return the image files of a folder of class folders."""
    return sorted(path for path in data.rglob("*") if path.suffix in {".png", ".jpg", ".jpeg"})


def test_air_is_dark_in_films_and_bright_in_their_negatives(films: Path) -> None:
    for path in images_of(films):
        grey = Image.open(path).convert("L")
        assert air_of(thumbnail(grey)) == AIR_DARK, path
        assert air_of(thumbnail(Image.fromarray(255 - np.asarray(grey)))) == AIR_BRIGHT, path


@pytest.mark.skipif(not KERMANY.is_dir(), reason="the real films are not here")
def test_air_of_real_films() -> None:
    """The figures of docs/data.md."""
    found: Counter[tuple[str, int]] = Counter()
    for path in sorted(KERMANY.rglob("*.jpeg")):
        grey = np.asarray(Image.open(path).convert("L"))
        framed = np.zeros_like(grey)
        framed[30:-30, 30:-30] = grey[30:-30, 30:-30]
        negative = np.where(framed > 0, 255 - framed, 0).astype(np.uint8)
        for name, pixels in (
            ("plain", grey),
            ("negative", 255 - grey),
            ("framed", framed),
            ("framed negative", negative),
            ("lying", np.ascontiguousarray(np.rot90(grey))),
        ):
            found[name, air_of(thumbnail(Image.fromarray(pixels)))] += 1
    assert (found["plain", AIR_DARK], found["negative", AIR_BRIGHT]) == (378, 378)
    assert (found["framed", AIR_DARK], found["framed negative", AIR_BRIGHT]) == (378, 377)
    assert (found["framed", AIR_BRIGHT], found["framed negative", AIR_DARK]) == (0, 0)
    assert (found["lying", AIR_UNDECIDED], found["lying", AIR_BRIGHT]) == (334, 42)


@pytest.mark.parametrize("kind", ["noise", "plain", "thin", "ramp"])
def test_air_of_what_is_no_chest_is_undecided(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE)).astype(np.uint8)
    framed = np.full((SIDE, SIDE), 7, dtype=np.uint8)
    framed[:, 20:30] = noise[:, 20:30]
    ramp = np.tile(np.arange(SIDE, dtype=np.uint8), (SIDE, 1))
    thumb = {"noise": noise, "plain": np.full((SIDE, SIDE), 7, dtype=np.uint8), "thin": framed, "ramp": ramp}[kind]
    assert air_of(thumb) == AIR_UNDECIDED


def test_negatives_among_positives_are_told_by_class(chestx: Chestx, films: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(films, data)
    assert not any(
        "olarity" in note for note in chestx("split", data, "--study", tmp_path / "a", "--json").json()["notes"]
    )
    for path in images_of(data / "PNEUMONIA")[:5]:
        inverted(path)
    outcome = chestx("split", data, "--study", tmp_path / "s", "--json")
    record = outcome.json()
    (note,) = [note for note in record["notes"] if note.startswith("Polarity is mixed: ")]
    assert "air looks bright in 5 images (PNEUMONIA 5), such as img-" in note
    rows = {row["label"]: row for row in record["audit"]["air"]}
    assert (rows["NORMAL"]["bright"], rows["PNEUMONIA"]["bright"]) == (0, 5)
    assert sum(row["dark"] + row["bright"] + row["undecided"] for row in rows.values()) == 60
    shown = chestx("split", data, "--study", tmp_path / "s", "--full").out
    assert "Polarity is mixed" in shown
    for path in [*images_of(data / "NORMAL"), *images_of(data / "PNEUMONIA")[5:]]:
        inverted(path)
    notes = chestx("split", data, "--study", tmp_path / "b", "--json").json()["notes"]
    assert any(note.startswith("All images may be inverted: air looks bright in 60 images") for note in notes)


def test_negatives_among_other_images_are_told(chestx: Chestx, films: Path, tmp_path: Path) -> None:
    assert chestx("train", films, "--study", tmp_path / "s", *TINY, "--epochs", 1).code == 0
    others = tmp_path / "others"
    write_synthetic_set(others, images=60, seed=99, size_px=96)
    for path in images_of(others):
        inverted(path)
    (others / "NORMAL" / "scan.gif").write_bytes(b"GIF89a, and so on")
    odd = dicom(PIXELS, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="IDENTITY", PatientID="X")
    (others / "NORMAL" / "IM0001").write_bytes(odd)
    words = ("evaluate", "--study", tmp_path / "s", "--data", others, "--allow-leakage", "--json")
    notes = chestx(*words).json()["notes"]
    assert any(note.startswith("All images may be inverted: air looks bright in 60 images") for note in notes)
    assert "File: image (its content, not its name; 1 images)." in notes
    conflict = "conflict: MONOCHROME1 with PresentationLUTShape IDENTITY"
    assert f"Polarity: inverted, air dark ({conflict}; 1 images)." in notes


def masks(folder: Path, n: int) -> Iterator[Path]:
    """Draw two lungs as a mask, each of another shape."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    for index in range(n):
        image = Image.new("L", (96, 96))
        draw = ImageDraw.Draw(image)
        top, bottom = 15 + int(rng.integers(10)), 60 + int(rng.integers(30))
        for left in (14, 54):
            draw.ellipse((left, top, left + 26, bottom), fill=255)
        path = folder / f"IM-{9000 + index}-0001.png"
        image.save(path)
        yield path


def test_masks_are_refused_as_such(chestx: Chestx, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data")
    assert len(list(masks(data / "NORMAL" / "more", 8))) == 8
    outcome = chestx("split", data, "--study", tmp_path / "s")
    assert outcome.code == 1
    assert "8 images, NORMAL/more/IM-9000-0001.png" in outcome.err
    assert "and 5 more: mask: a few areas of uniform grey: a mask, not a radiograph" in outcome.err
    record = chestx("split", data, "--study", tmp_path / "s", "--skip-bad", "--json").json()
    assert (record["images"], record["refusals"][0]["code"], record["refusals"][0]["images"]) == (60, "mask", 8)


def _label_map(mask: Image.Image) -> Image.Image:
    labels = (np.asarray(mask) > 0).astype(np.uint8)
    labels[:, 48:] *= 2
    return Image.fromarray(labels)


@pytest.mark.parametrize(
    ("change", "form", "expected"),
    [
        (lambda mask: mask, "PNG", True),
        (lambda mask: mask.resize((256, 256), Image.Resampling.NEAREST), "JPEG", True),
        (lambda mask: mask.convert("1"), "PNG", True),
        (lambda mask: mask.convert("RGB"), "PNG", True),
        (lambda mask: Image.fromarray(255 - np.asarray(mask)), "PNG", True),
        (lambda mask: Image.fromarray(np.asarray(mask).astype(np.uint16) * 257), "PNG", True),
        (_label_map, "PNG", True),
        (lambda mask: mask.resize((40, 40)).filter(ImageFilter.SHARPEN).convert("1"), "PNG", True),
        (lambda mask: mask.filter(ImageFilter.GaussianBlur(12)), "PNG", False),
    ],
)  # fmt: skip
def test_masks_are_known_in_every_form(tmp_path: Path, change: Any, form: str, expected: bool) -> None:
    (path,) = masks(tmp_path, 1)
    change(Image.open(path)).save(path, form)
    assert decode_grey(path)[1].is_mask is expected


def test_films_are_no_masks_even_where_they_are_dark_or_dithered(films: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for source in images_of(films)[:20]:
        grey = Image.open(source).convert("L")
        for film in (grey, grey.point([value // 20 for value in range(256)]), grey.convert("1")):
            film.save(path)
            assert not decode_grey(path)[1].is_mask, source


def test_one_grey_is_refused_with_a_code_of_its_own(chestx: Chestx, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data")
    Image.new("L", (40, 40), 128).save(data / "NORMAL" / "IM-9000-0001.png")
    Image.fromarray(np.full((40, 40), 700, dtype=np.uint16)).save(data / "NORMAL" / "IM-9001-0001.png")
    outcome = chestx("split", data, "--study", tmp_path / "s")
    assert outcome.code == 1
    assert (
        "2 images, NORMAL/IM-9000-0001.png, NORMAL/IM-9001-0001.png: one-grey: all its pixels are one grey"
        in outcome.err
    )


def test_like_refusals_are_grouped() -> None:
    refused = [(f"{n}.png", "too-small", f"{n}×{n} pixels") for n in range(1, 10)]
    refused += [(f"x{n}.dcm", "unsupported", "one syntax") for n in range(40)]
    refused += [("gone.png", "missing", "No such file")]
    found = grouped(refused)
    assert (found[0].code, len(found[0].names), found[0].names[0]) == ("unsupported", 40, "x0.dcm")
    assert sum(len(alike.names) for alike in found) == 50
    assert sum(alike.code == "too-small" for alike in found) == MAX_DETAILS
    assert max(len(alike.names) for alike in found if alike.code == "too-small") == 9 - (MAX_DETAILS - 1)


def put_clutter(folder: Path) -> None:
    """Put files into a folder that are no images, one of each kind."""
    no_image = dicom(PIXELS, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    (folder / "DICOMDIR").write_bytes(
        no_image.replace(b"1.2.840.10008.5.1.4.1.1.88.11", b"1.2.840.10008.1.3.10" + b"\0" * 9)
    )
    (folder / "report").write_bytes(no_image)
    (folder / "notes.txt").write_text("BM, in Bavarian")
    (folder / "empty").touch()
    (folder / "scan.gif").write_bytes(b"GIF89a" + bytes(200))
    (folder / "scan.jp2").write_bytes(b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(200))
    os.mkfifo(folder / "pipe")


LEFT_OUT = {
    "DICOM without an image": 2,
    "no image": 1,
    "no bytes": 1,
    "GIF image, which is not read": 1,
    "JPEG 2000 image, which is not read": 1,
    "cannot be opened": 1,
}


def test_images_are_known_by_their_content_and_others_counted_by_reason(chestx: Chestx, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data")
    named = sorted((data / "PNEUMONIA").iterdir())
    for index, path in enumerate(named):
        if index % 3 == 0:
            values = np.asarray(Image.open(path)).astype(np.uint16) * 16
            path.with_suffix("").write_bytes(dicom(values, BitsStored=12, HighBit=11, PatientID=f"P{index}"))
            path.unlink()
        elif index % 3 == 1:
            Image.open(path).save(path.with_suffix(".jfif"), "JPEG")
            path.unlink()
    put_clutter(data / "PNEUMONIA")
    record = chestx("split", data, "--study", tmp_path / "s", "--json").json()
    assert (record["images"], record["ignored_files"]) == (60, 7)
    assert {row["reason"]: row["files"] for row in record["left_out"]} == LEFT_OUT
    assert {row["label"] for row in record["left_out"]} == {"PNEUMONIA"}
    assert record["taken"][0] == {
        "matter": "File",
        "taken_as": "image",
        "because": "its content, not its name",
        "images": 19,
    }
    (note,) = [note for note in record["notes"] if note.startswith("Of the 35 files of PNEUMONIA, 7 are left out: ")]
    assert "2 × DICOM without an image" in note
    made = pd.read_csv(tmp_path / "s" / "split.csv")
    assert sorted(Counter(made["file_type"]).items()) == [("DICOM", 10), ("JPEG", 9), ("PNG", 41)]
    assert sum(made["patient_from"] == "DICOM PatientID") == 10
    shown = chestx("split", data, "--study", tmp_path / "s", "--full").out
    assert "GIF image, which is not read" in shown
    # Again by a manifest, whose paths have no suffix either.
    manifest = tmp_path / "m.csv"
    made.assign(path="data/" + made["path"])[["path", "label", "group"]].to_csv(manifest, index=False)
    again = chestx("split", manifest, "--study", tmp_path / "m", "--json")
    assert again.code == 0, again.err
    assert again.json()["images"] == 60


def test_a_class_of_nothing_that_is_read_says_what_it_holds(chestx: Chestx, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data")
    shutil.rmtree(data / "NORMAL")
    (data / "NORMAL").mkdir()
    put_clutter(data / "NORMAL")
    outcome = chestx("split", data, "--study", tmp_path / "s")
    assert outcome.code == 1
    assert "NORMAL has no images, but 2 × DICOM without an image, " in outcome.err


def test_few_files_left_out_are_counted_and_no_more(chestx: Chestx, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data")
    (data / "NORMAL" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    record = chestx("split", data, "--study", tmp_path / "s", "--json").json()
    assert record["left_out"] == [{"label": "NORMAL", "reason": "no image", "files": 1}]
    assert not [note for note in record["notes"] if "left out" in note]


def test_content_decides_and_not_the_name(tmp_path: Path) -> None:
    film = Image.fromarray(PIXELS.astype(np.uint8))
    contents = {"a.dcm": "PNG", "b.png": "TIFF", "c": "BMP", "d.dat": "WEBP"}
    for name, form in contents.items():
        film.save(tmp_path / name, form)
        assert decode_grey(tmp_path / name)[1].file_type == form
    (tmp_path / "e.png").write_bytes(dicom(PIXELS))
    assert decode_grey(tmp_path / "e.png")[1].file_type == "DICOM"
    assert sift(tmp_path, sorted(contents)) == dict.fromkeys(sorted(contents), BY_CONTENT)
    (tmp_path / "f.dcm").write_bytes(b"no DICOM")
    with pytest.raises(UnreadableImageError, match="wrong-format: not a DICOM file"):
        decode_grey(tmp_path / "f.dcm")


def test_a_bundle_finds_images_by_content_and_says_what_it_leaves_out(
    chestx: Chestx, study: Path, data: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    assert chestx("export", "baseline", "--study", study, "--out", bundle).code == 0
    folder = tmp_path / "in"
    folder.mkdir()
    for index, path in enumerate(sorted((data / "NORMAL").iterdir())[:3]):
        Image.open(path).save(folder / f"{index}.jfif", "JPEG")
    put_clutter(folder)
    (folder / "IM0001").write_bytes(dicom(PIXELS))
    (folder / "pipe").unlink()
    done = run_script(bundle, "predict", folder)
    assert done.returncode == 0, done.stderr
    # The DICOM film is read by the modules in the bundle.
    assert [Path(row["path"]).name for row in json.loads(done.stdout)["images"]] == [
        *("0.jfif", "1.jfif", "2.jfif", "IM0001"),
    ]
    assert "left out of " in done.stderr
    assert "2 DICOM without an image" in done.stderr
    for path in (*folder.glob("*.jfif"), folder / "IM0001"):
        path.unlink()
    done = run_script(bundle, "predict", folder)
    assert done.returncode == 1
    assert "no images in" in done.stderr


def test_processes_and_this_one_tell_the_same_facts(
    films: Path, chestx: Chestx, tmp_path: Path, monkeypatch: Any
) -> None:
    assert chestx("split", films, "--study", tmp_path / "here").code == 0
    monkeypatch.setattr("chestx_cli.data.scanning.PROCESSES_FROM_IMAGES", 1)
    assert chestx("split", films, "--study", tmp_path / "there").code == 0
    audits = [json.loads((tmp_path / name / "split.json").read_text())["audit"] for name in ("here", "there")]
    assert audits[0] == audits[1]
    assert Preprocessing().value_bits == 16
