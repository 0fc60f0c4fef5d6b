"""The value range of images with more than 8 bits: determined by the split, stored with the variant, constant."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chestx_cli.core.progress import SilentReporter
from chestx_cli.data.images.decoding import decode_grey
from chestx_cli.data.images.formats.refusals import UnreadableImageError
from chestx_cli.data.images.pixel_cache import cache_path, open_pixels
from chestx_cli.records.preprocessing import Preprocessing
from chestx_cli.store.directory import Study
from conftest import TINY, Chestx, edit, write_images
from support.bundle_script import loaded_script, run_script
from tools.reliability.encoders import Tiff

FIT = ("--epochs", 1, "--batch-size", 16)


def widen(data: Path, bits: int, only: Callable[[Path], bool] = lambda _: True) -> Path:
    """Turn PNG images of 8 bits into ones of 16 that use fewer of them, the largest value in each class."""
    for path in sorted(data.rglob("*.png")):
        if only(path):
            grey = np.asarray(Image.open(path)).astype(np.uint16)
            wide = grey << (bits - 8)
            wide[0, 0] = 2**bits - 1
            Image.fromarray(wide).save(path)
    return data


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return images of 12 bits in 16-bit files; tests must not change them."""
    return widen(write_images(tmp_path_factory.mktemp("narrow") / "data"), 12)


@pytest.fixture(scope="module")
def trained(chestx: Chestx, narrow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a study of these images with a baseline; tests must not change it."""
    study = tmp_path_factory.mktemp("trained") / "study"
    outcome = chestx("train", narrow, "--study", study, *TINY, *FIT)
    assert outcome.code == 0, outcome.err
    return study


def pixels_of(study: Path) -> np.ndarray:
    """Return the pixels that a study's networks see."""
    place = Study(study)
    (cache,) = place.cache.glob("pixels-*.npy")
    found: np.ndarray = np.load(cache)
    return found


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_the_range_is_that_of_the_bits_in_use(chestx: Chestx, tmp_path: Path, bits: int) -> None:
    data = widen(write_images(tmp_path / "data"), bits)
    outcome = chestx("split", data, "--study", tmp_path / "s", "--image-size", 40, "--json")
    assert outcome.code == 0, outcome.err
    record = outcome.json()
    assert record["value_bits"] == bits
    (row,) = record["taken"]
    assert row == {
        "matter": "Value range",
        "taken_as": f"0 to {2**bits - 1:,} ({bits} bits)",
        "because": f"most bits in use, of more than 8: NORMAL {bits}, PNEUMONIA {bits}",
        "images": 60,
    }
    assert not [note for note in record["notes"] if "greys" in note]
    # At their own size nothing is resampled: the greys are those of the images of 8 bits that these were made from.
    plain = write_images(tmp_path / "plain")
    paths = pd.read_csv(tmp_path / "s" / "split.csv")["path"]
    expected = np.stack([np.asarray(Image.open(plain / path)) for path in paths]).astype(int)
    found = pixels_of(tmp_path / "s").astype(int)
    assert np.abs(found - expected)[:, 1:].max() <= 1


def test_a_dark_image_is_scaled_as_the_others_of_its_set(chestx: Chestx, tmp_path: Path) -> None:
    data = widen(write_images(tmp_path / "data"), 12)
    dark = sorted((data / "NORMAL").iterdir())[3]
    wide = np.asarray(Image.open(dark)).astype(np.uint16) // 5
    Image.fromarray(wide).save(dark)
    assert chestx("split", data, "--study", tmp_path / "s", "--image-size", 40).code == 0
    row = pd.read_csv(tmp_path / "s" / "split.csv")["path"].tolist().index(f"NORMAL/{dark.name}")
    found = pixels_of(tmp_path / "s")[row].astype(int)
    assert np.abs(found - (wide.astype(int) * 255 + 2047) // 4095).max() == 0
    assert len(list((tmp_path / "s" / "cache").glob("*.npy"))) == 1


def test_many_images_are_scaled_alike_by_processes(
    chestx: Chestx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = widen(write_images(tmp_path / "data"), 12, lambda path: path.parent.name == "NORMAL")
    assert chestx("split", data, "--study", tmp_path / "here", "--image-size", 40).code == 0
    monkeypatch.setattr("chestx_cli.data.scanning.PROCESSES_FROM_IMAGES", 1)
    assert chestx("split", data, "--study", tmp_path / "there", "--image-size", 40).code == 0
    assert np.array_equal(pixels_of(tmp_path / "here"), pixels_of(tmp_path / "there"))
    records = [json.loads((tmp_path / name / "split.json").read_text()) for name in ("here", "there")]
    assert records[0]["taken"] == records[1]["taken"]
    assert records[0]["audit"]["air"] == records[1]["audit"]["air"]
    assert records[0]["taken"][0]["images"] == 32


def test_images_that_use_fewer_bits_than_the_set_are_named(chestx: Chestx, tmp_path: Path) -> None:
    data = widen(write_images(tmp_path / "data"), 12, lambda path: path.parent.name == "NORMAL")
    widen(data, 16, lambda path: path.parent.name == "PNEUMONIA")
    record = chestx("split", data, "--study", tmp_path / "s", "--json").json()
    assert record["value_bits"] == 16
    assert record["taken"][0]["because"].endswith("NORMAL 12, PNEUMONIA 16")
    assert len(record["audit"]["few_levels"]) == 32
    assert all(row["levels"] <= 17 for row in record["audit"]["few_levels"])
    (note,) = [note for note in record["notes"] if note.startswith("Few grey levels: ")]
    assert "32 images (NORMAL 32) use at most 64 of 256" in note


def test_the_range_is_stored_with_the_variant_and_its_children(chestx: Chestx, trained: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    shutil.copytree(trained, study)
    assert chestx("quantize", "--study", study).code == 0
    for name in ("baseline", "dynamic-int8"):
        preprocessing = json.loads((study / "variants" / name / "variant.json").read_text())["preprocessing"]
        assert (preprocessing["version"], preprocessing["value_bits"]) == (4, 12)


def test_training_at_another_size_decodes_in_the_same_range(chestx: Chestx, narrow: Path, tmp_path: Path) -> None:
    assert chestx("split", narrow, "--study", tmp_path / "s", "--image-size", 48).code == 0
    outcome = chestx("train", narrow, "--study", tmp_path / "s", *TINY, *FIT)
    assert outcome.code == 0, outcome.err
    place = Study(tmp_path / "s")
    record = place.read_variant("baseline")
    assert record.preprocessing == Preprocessing(image_size_px=32, value_bits=12, lateral=False)
    pixels = open_pixels(place, place.read_split(), record.preprocessing, SilentReporter())
    assert pixels.max() > 180


def test_other_images_are_read_in_the_stored_range_or_refused(chestx: Chestx, trained: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    shutil.copytree(trained, study)
    others = widen(write_images(tmp_path / "others", first=5000), 12)
    darker = sorted((others / "NORMAL").iterdir())[0]
    Image.fromarray(np.asarray(Image.open(darker)).astype(np.uint16) // 4).save(darker)
    wider = sorted((others / "PNEUMONIA").iterdir())[0]
    widen(wider.parent, 16, lambda path: path == wider)
    outcome = chestx("evaluate", "--study", study, "--data", others, "--name", "external", "--json")
    assert outcome.code == 0, outcome.err
    said = " ".join(outcome.json()["notes"])
    assert "1 images could not be read and are left out (1 value-range)" in said
    assert "it uses 16 bits, where the images of the split use 12" in said
    probabilities = pd.read_csv(study / "variants" / "baseline" / "predictions.external.csv").set_index("image_id")
    listed = pd.read_csv(study / "images.external.csv").set_index("path")["image_id"]
    bundle = tmp_path / "bundle"
    exported = chestx("export", "baseline", "--study", study, "--out", bundle)
    assert exported.code == 0, exported.err
    assert json.loads((bundle / "model.json").read_text())["preprocessing"]["value_bits"] == 12
    done = run_script(bundle, "predict", others)
    assert done.returncode == 1
    for image in json.loads(done.stdout)["images"]:
        name = Path(image["path"]).relative_to(others).as_posix()
        if name == f"PNEUMONIA/{wider.name}":
            assert image["unreadable"].startswith("it uses 16 bits, where the images of the split use 12")
            continue
        row = probabilities.loc[listed[name]]
        assert image["probability"] == pytest.approx(float(row.iloc[2]), abs=1e-5)


def unread_manifest(data: Path, name: str) -> Path:
    """Write a manifest with everything that `--unread` requires."""
    rows = [
        (f"{data.name}/{path.parent.name}/{path.name}", path.parent.name, str(index // 2), _sha256(path))
        for index, path in enumerate(sorted(data.rglob("*.png")))
    ]
    manifest = data.parent / name
    pd.DataFrame(rows, columns=["path", "label", "group", "sha256"]).to_csv(manifest, index=False)
    return manifest


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_split_that_looked_at_nothing_leaves_the_range_to_training(chestx: Chestx, tmp_path: Path) -> None:
    data = widen(write_images(tmp_path / "data"), 12)
    manifest = unread_manifest(data, "m.csv")
    record = chestx("split", manifest, "--study", tmp_path / "s", "--unread", "--json").json()
    assert (record["value_bits"], record["taken"]) == (None, [])
    outcome = chestx("train", manifest, "--study", tmp_path / "s", *TINY, *FIT)
    assert outcome.code == 0, outcome.err
    assert "are scaled from 12 bits, which 60 images use at most" in " ".join(outcome.err.split())
    assert Study(tmp_path / "s").read_variant("baseline").preprocessing.value_bits == 12


def older_split(content: bytes) -> bytes:
    """Return a split's record as the version before wrote it."""
    document = json.loads(content)
    for name in ("value_bits", "taken", "left_out", "refusals"):
        del document[name]
    for name in ("air", "few_levels"):
        del document["audit"][name]
    document["audit"]["told_patients"] = document["audit"].pop("patients_before_merging")
    return json.dumps({**document, "schema": "chestx.split/3"}).encode()


def test_a_split_of_the_version_before_is_read(chestx: Chestx, narrow: Path, tmp_path: Path) -> None:
    assert chestx("split", narrow, "--study", tmp_path / "s", "--image-size", 32).code == 0
    edit(tmp_path / "s" / "split.json", older_split)
    outcome = chestx("train", narrow, "--study", tmp_path / "s", *TINY, *FIT)
    assert outcome.code == 0, outcome.err
    assert Study(tmp_path / "s").read_variant("baseline").preprocessing.value_bits == 12
    assert chestx("report", "--study", tmp_path / "s").code == 0


def as_version_2(content: bytes) -> bytes:
    """Return a variant's record with the preprocessing that version 2 stored."""
    document = json.loads(content)
    document["preprocessing"]["version"] = 2
    del document["preprocessing"]["value_bits"]
    return json.dumps(document).encode()


def test_a_variant_of_preprocessing_2_predicts_as_it_did(chestx: Chestx, study: Path, tmp_path: Path) -> None:
    words = ("evaluate", "baseline", "--study", study, "--json")
    before = chestx(*words).json()["rows"]
    edit(study / "variants" / "baseline" / "variant.json", as_version_2)
    for cache in (study / "cache").glob("pixels-*"):
        cache.unlink()
    outcome = chestx(*words)
    assert outcome.code == 0, outcome.err
    assert outcome.json()["rows"] == before
    outcome = chestx("export", "baseline", "--study", study, "--out", tmp_path / "bundle")
    assert outcome.code == 0, outcome.err
    assert json.loads((tmp_path / "bundle" / "model.json").read_text())["preprocessing"]["version"] == 2


OLD, NEW = Preprocessing(version=2), Preprocessing()


def greys(path: Path, preprocessing: Preprocessing) -> np.ndarray:
    """Return the grey values of a file, after comparing them with those of a bundle's script if it reads the file."""
    grey = np.asarray(decode_grey(path, preprocessing)[0]).astype(int)
    if path.suffix != ".dcm":
        description: dict[str, Any] = {"preprocessing": {**vars(preprocessing), "image_size_px": grey.shape[0]}}
        script = loaded_script()
        found = script.grey_pixels(path, **script.decoding(description))
        assert np.array_equal(found, grey)
    return grey


def test_preprocessing_2_reads_as_it_did_and_3_reads_right(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (32, 32))
    values[0, :2] = 0, 65535
    path = tmp_path / "a.tif"
    path.write_bytes(Tiff(bits=16, photometric=0).write(values))
    assert np.array_equal(greys(path, OLD), 255 - greys(path, NEW))
    path.write_bytes(Tiff(bits=8, photometric=0).write(values >> 8))
    assert np.array_equal(greys(path, OLD), greys(path, NEW))
    path.write_bytes(Tiff(bits=8, photometric=None).write(values >> 8))
    assert np.array_equal(greys(path, OLD), 255 - greys(path, NEW))
    path.write_bytes(Tiff(bits=16, photometric=1).write(values >> 4))
    assert (greys(path, OLD).max(), greys(path, Preprocessing(value_bits=12)).max()) == (16, 255)
    path.write_bytes(Tiff(bits=16, photometric=1).write(np.full((32, 32), 9)))
    # As a mask it is refused by `predict` and the script alike.
    assert np.asarray(decode_grey(path, OLD)[0]).max() == 0
    with pytest.raises(UnreadableImageError, match="one-grey"):
        greys(path, NEW)


def test_the_caches_of_preprocessing_2_keep_their_names(tmp_path: Path) -> None:
    # What version 2 wrote: the name is made of this text.
    text = (
        "Preprocessing(version=2, image_size_px=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))\n" + "a\nb"
    )
    expected = f"pixels-224-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npy"
    assert cache_path(Study(tmp_path), ["a", "b"], OLD).name == expected
    names = {cache_path(Study(tmp_path), ["a"], one).name for one in (OLD, NEW, Preprocessing(value_bits=12))}
    assert len(names) == 3


@pytest.mark.parametrize("values", [{"value_bits": 7}, {"value_bits": 17}, {"version": 2, "value_bits": 12}])
def test_ranges_that_no_variant_can_have_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="value range"):
        Preprocessing(**values)
