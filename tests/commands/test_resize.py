"""`--resize`: the mapping of an image of any shape to the square input, applied wherever a variant is used."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import chestx_cli
from chestx_cli.core.progress import SilentReporter
from chestx_cli.data.duplicates import correlations
from chestx_cli.data.images import pixel_cache
from chestx_cli.data.images.decoding import at_network_size, decode_grey
from chestx_cli.data.images.pixel_cache import cache_path, open_pixels
from chestx_cli.data.images.places import place_of
from chestx_cli.data.scanning import thumbnails
from chestx_cli.data.synthetic.radiographs import draw_anatomy, draw_radiograph
from chestx_cli.records.preprocessing import CENTER_CROP, LETTERBOX, RESIZED, SQUASH, Preprocessing
from chestx_cli.store.directory import Study
from conftest import IMAGE_SIZE_PX, TINY, Chestx, draw_image, run_chestx
from support.bundle_script import loaded_script, run_script

POSITIVE = "PNEUMONIA"
SHAPES = ((61, 40), (40, 61), (17, 120), (121, 18), (48, 48), (33, 32))
# Of a probability: the same runtime with another batch, and another runtime.
SAME_RUNTIME, OTHER_RUNTIME = 1e-6, 1e-5


def write_shapes(folder: Path, *, n: int, first: int) -> Path:
    """Write n images of each class in turn of each shape, all of different patients."""
    rng = np.random.default_rng(first)
    for label in ("NORMAL", POSITIVE):
        (folder / label).mkdir(parents=True)
        for index in range(n):
            square = draw_image(rng, bright=label == POSITIVE, side_px=60)
            number = first + index
            name = f"IM-{number:04d}-0001.png" if label == "NORMAL" else f"person{number}_virus_{number}.png"
            square.resize(SHAPES[index % len(SHAPES)]).save(folder / label / name)
    return folder


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return training images of many shapes, and others."""
    folder = tmp_path_factory.mktemp("shapes")
    return write_shapes(folder / "data", n=24, first=0), write_shapes(folder / "other", n=9, first=500)


@pytest.fixture(scope="module", params=list(RESIZED))
def trained(
    request: pytest.FixtureRequest, films: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """Return a study whose baseline and INT8 variant resize in one of the ways, and the way."""
    study = tmp_path_factory.mktemp("resized") / "study"
    at = ("--study", study)
    commands: list[tuple[object, ...]] = [
        ("train", films[0], *at, *TINY, "--resize", request.param, "--epochs", 2, "--batch-size", 16),
        ("quantize", *at, "--method", "static"),
        ("evaluate", *at),
        ("evaluate", *at, "--data", films[1], "--name", "new"),
    ]
    for words in commands:
        outcome = run_chestx(*words)
        assert outcome.code == 0, f"{words}\n{outcome.err}"
    return study, request.param


def drawn(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * height).integers(1, 255, (height, width)).astype(np.uint8))


@pytest.mark.parametrize("resize", RESIZED)
@pytest.mark.parametrize("shape", [*SHAPES, (1, 50), (50, 1), (1, 1), (640, 3), (223, 225), (31, 900)])
def test_the_square_of_any_shape_is_the_bundles_too(shape: tuple[int, int], resize: str) -> None:
    for side_px in (32, 33):
        square = at_network_size(drawn(*shape), Preprocessing(image_size_px=side_px, resize=resize))
        assert square.shape == (side_px, side_px)
        assert square.any()
        by_script = loaded_script().image_reader().square_of(drawn(*shape), side_px, resize)
        assert np.array_equal(square, np.asarray(by_script))


def extent(square: np.ndarray) -> tuple[int, int]:
    """Return width and height of what is bright."""
    rows, columns = (np.flatnonzero((square > 127).any(axis=axis)) for axis in (1, 0))
    return int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)


@pytest.mark.parametrize(("resize", "expected"), [(SQUASH, (12, 24)), (LETTERBOX, (12, 12)), (CENTER_CROP, (24, 24))])
def test_letterbox_and_crop_keep_the_aspect_and_squash_does_not(resize: str, expected: tuple[int, int]) -> None:
    wide = np.full((200, 400), 20, dtype=np.uint8)
    wide[50:150, 150:250] = 250
    for film, aspect in ((wide, expected), (wide.T, expected[::-1])):
        square = at_network_size(Image.fromarray(film), Preprocessing(image_size_px=48, resize=resize))
        found = extent(square)
        assert all(abs(one - other) <= 1 for one, other in zip(found, aspect, strict=True)), found


def test_the_bands_of_a_letterbox_are_black_and_beside_the_image() -> None:
    square = at_network_size(drawn(90, 60), Preprocessing(image_size_px=48, resize=LETTERBOX))
    assert not square[:8].any()
    assert not square[40:].any()
    assert square[8:40].all()


def test_a_crop_shows_nothing_from_outside_its_square() -> None:
    film = np.zeros((60, 90), dtype=np.uint8)
    film[:, 15:75] = 200
    square = at_network_size(Image.fromarray(film), Preprocessing(image_size_px=60, resize=CENTER_CROP))
    assert (square == 200).all()


def by_file(rows: Any, name: str, value: str) -> dict[str, float]:
    return {Path(row[name]).name: float(row[value]) for row in rows}


def test_every_surface_gives_the_same_probability(
    chestx: Chestx, trained: tuple[Path, str], films: tuple[Path, Path], tmp_path: Path
) -> None:
    study, resize = trained
    files = sorted(films[1].rglob("*.png"))
    with (study / "images.new.csv").open() as listed:
        name_of = {row["image_id"]: Path(row["path"]).name for row in csv.DictReader(listed)}
    for variant in ("baseline", "static-int8"):
        assert Study(study).read_variant(variant).preprocessing.resize == resize
        with (study / "variants" / variant / "predictions.new.csv").open() as stored:
            rows = [{**row, "file": name_of[row["image_id"]]} for row in csv.DictReader(stored)]
        expected = by_file(rows, "file", "probability")
        bundle = tmp_path / variant
        assert chestx("export", variant, "--study", study, "--out", bundle, "--anyway").code == 0
        model = chestx_cli.open_study(study).variant(variant)
        arrays = model.predict([np.asarray(Image.open(path)) for path in files]).rows
        script = run_script(bundle, "predict", films[1])
        ways = {
            "predict": (
                {Path(r.path or "").name: r.probability[POSITIVE] for r in model.predict(films[1]).rows},
                SAME_RUNTIME,
            ),
            "arrays": (
                dict(zip((p.name for p in files), (r.probability[POSITIVE] for r in arrays), strict=True)),
                SAME_RUNTIME,
            ),
            "bundle": (
                {
                    Path(r.path or "").name: r.probability[POSITIVE]
                    for r in chestx_cli.predict((films[1],), bundle=bundle, show_paths=True).rows
                },
                OTHER_RUNTIME,
            ),
            "script": (by_file(json.loads(script.stdout)["images"], "path", "probability"), OTHER_RUNTIME),
        }
        for way, (found, tolerance) in ways.items():
            assert found == pytest.approx(expected, abs=tolerance), (variant, way)


def test_the_ways_differ_where_images_are_not_square(films: tuple[Path, Path]) -> None:
    wide = next(path for path in sorted(films[1].rglob("*.png")) if Image.open(path).size == SHAPES[0])
    grey = decode_grey(wide)[0]
    squares = [at_network_size(grey, Preprocessing(image_size_px=IMAGE_SIZE_PX, resize=resize)) for resize in RESIZED]
    assert not any(np.array_equal(squares[one], squares[other]) for one, other in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("processes_from", [1, 1000])
@pytest.mark.parametrize("resize", RESIZED)
def test_the_split_keeps_the_pixels_that_training_reads(
    chestx: Chestx,
    films: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    resize: str,
    processes_from: int,
) -> None:
    monkeypatch.setattr("chestx_cli.data.scanning.PROCESSES_FROM_IMAGES", processes_from)
    at = ("--study", tmp_path / "s")
    outcome = chestx("split", films[0], *at, "--image-size", IMAGE_SIZE_PX, "--resize", resize)
    assert outcome.code == 0, outcome.err
    study = Study(tmp_path / "s")
    split = study.read_split()
    size = Preprocessing(image_size_px=IMAGE_SIZE_PX, resize=resize)
    assert cache_path(study, split.image_sha256.tolist(), size).is_file()
    monkeypatch.setattr(pixel_cache, "load_pixels", lambda *_, **__: pytest.fail("an image is decoded again"))
    pixels = open_pixels(study, split, size, SilentReporter())
    expected = [at_network_size(decode_grey(place_of(split, row))[0], size) for row in range(len(split.ids))]
    assert np.array_equal(pixels, np.stack(expected))


def test_each_way_has_its_own_cache_and_versions_3_and_4_share_one(tmp_path: Path) -> None:
    names = {cache_path(Study(tmp_path), ["a"], Preprocessing(resize=resize)).name for resize in RESIZED}
    assert len(names) == len(RESIZED)
    assert Preprocessing(version=3).identity == Preprocessing().identity
    for wrong in ({"version": 3, "resize": LETTERBOX}, {"version": 2, "resize": CENTER_CROP}, {"resize": "fit"}):
        with pytest.raises(ValueError, match="that resizes by"):
            Preprocessing(**wrong)


def test_another_way_is_another_variant_and_an_unknown_one_is_refused(
    chestx: Chestx, trained: tuple[Path, str], tmp_path: Path
) -> None:
    shutil.copytree(trained[0], tmp_path / "study")
    at, resize = ("--study", tmp_path / "study"), trained[1]
    words = ("train", *at, *TINY, "--epochs", 2, "--batch-size", 16)
    other = next(way for way in RESIZED if way != resize)
    refused = chestx(*words, "--resize", other)
    assert refused.code == 1
    assert f"resize: {resize} -> {other}" in " ".join(refused.err.split())
    assert chestx(*words, "--resize", resize).code == 0
    assert chestx(*words, "--resize", "fit").code == 2


def test_the_report_says_how(chestx: Chestx, trained: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(trained[0], tmp_path / "study")
    outcome = chestx("report", "--study", tmp_path / "study")
    assert outcome.code == 0, outcome.err
    page = (tmp_path / "study" / "report" / "index.html").read_text()
    assert RESIZED[trained[1]] in page
    assert not any(words in page for way, words in RESIZED.items() if way != trained[1])


@pytest.mark.parametrize("resize", RESIZED)
def test_copies_are_found_and_strangers_of_one_shape_are_not_joined(
    chestx: Chestx, tmp_path: Path, resize: str
) -> None:
    rng = np.random.default_rng(3)
    for folder, n, first in (("data", 16, 0), ("other", 8, 500)):
        for label in ("NORMAL", POSITIVE):
            (tmp_path / folder / label).mkdir(parents=True)
            for number in range(first, first + n):
                noise = Image.fromarray(rng.normal(128, 50, (9, 15)).clip(0, 255).astype(np.uint8))
                name = f"IM-{number:04d}-0001.png" if label == "NORMAL" else f"person{number}_virus_{number}.png"
                noise.resize((300, 180), Image.Resampling.BICUBIC).save(tmp_path / folder / label / name)
    at = ("--study", tmp_path / "study")
    size = ("--backbone", "tiny", "--weights", "none", "--image-size", 64, "--lr", 0.001, "--epochs", 1)
    assert chestx("train", tmp_path / "data", *at, *size, "--resize", resize).code == 0
    apart = chestx("evaluate", *at, "--data", tmp_path / "other", "--name", "apart")
    assert apart.code == 0, apart.err
    study = Study(tmp_path / "study")
    split = study.read_split()
    row = int(split.indices("train")[0])
    with Image.open(split.root / str(split.paths[row])) as film:
        label = split.classes[split.labels[row]]
        film.resize((200, 120)).save(tmp_path / "other" / label / "person900_virus_900.png")
    joined = chestx("evaluate", *at, "--data", tmp_path / "other", "--name", "joined")
    assert joined.code == 1
    assert "near-duplicate" in joined.err


def test_the_bands_of_a_letterbox_do_not_make_strangers_alike() -> None:
    films = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        films.append(Image.fromarray(draw_radiograph(draw_anatomy(rng), None, rng, size_px=128)).resize((300, 150)))
    size = Preprocessing(image_size_px=128, resize=LETTERBOX)
    squares = np.stack([at_network_size(film, size) for film in films])
    pairs = np.stack(np.triu_indices(len(films), 1), axis=1)
    without = correlations(thumbnails(squares, LETTERBOX), pairs)
    with_bands = correlations(thumbnails(squares, SQUASH), pairs)
    whole = np.stack([at_network_size(film, Preprocessing(image_size_px=128)) for film in films])
    assert np.median(without) == pytest.approx(np.median(correlations(thumbnails(whole, SQUASH), pairs)), abs=0.05)
    assert np.median(with_bands) > np.median(without) + 0.1
