"""`chestx predict --heatmap`: Grad-CAMs of the torch network, one picture per image, without names of patients."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from chestx_cli.core.command import Run
from chestx_cli.core.progress import SilentReporter
from chestx_cli.core.record import NOT_A_DEVICE
from chestx_cli.inference.pictures import heatmaps
from chestx_cli.inference.pictures.captions import can_be_drawn
from chestx_cli.inference.pictures.heatmaps import PICTURE_PX, Heatmaps, open_heatmaps
from chestx_cli.inference.predictor import predictor_of_variant
from chestx_cli.networks.backbones import BACKBONES, build_classifier
from chestx_cli.networks.layers import last_feature_layer
from chestx_cli.store.directory import Study
from conftest import Chestx, draw_image, edit, run_chestx

pytest.importorskip("captum")


@pytest.fixture(scope="module")
def study(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a study with torch and INT8 variants; tests must not change it."""
    study = tmp_path_factory.mktemp("heatmaps") / "study"
    shutil.copytree(finished, study)
    assert run_chestx("quantize", "--study", study, "--method", "static").code == 0
    return study


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    """Return a folder of two images whose names identify patients, one of them twice, and a file that is no image."""
    rng = np.random.default_rng(5)
    for number, name in enumerate(("MEIER^ANNA", "SCHMID^OTTO")):
        path = tmp_path / "inbox" / name / "film.png"
        path.parent.mkdir(parents=True)
        draw_image(rng, bright=bool(number)).save(path)
    shutil.copy(tmp_path / "inbox" / "MEIER^ANNA" / "film.png", tmp_path / "inbox" / "copy.png")
    (tmp_path / "inbox" / "broken.png").write_bytes(b"no image")
    return tmp_path / "inbox"


@pytest.mark.parametrize(("variant", "source"), [("baseline", "baseline"), ("static-int8", "baseline")])
def test_each_image_has_a_picture_of_the_torch_network(
    chestx: Chestx, study: Path, inbox: Path, tmp_path: Path, variant: str, source: str
) -> None:
    maps = tmp_path / "maps"
    outcome = chestx("predict", inbox, "--study", study, "--variant", variant, "--heatmap", maps, "--json")
    document = outcome.json()
    rows = {row["image_id"]: row for row in document["rows"]}
    drawn = [row["heatmap"] for row in rows.values() if row["heatmap"]]
    assert len(set(drawn)) == len(drawn) == 3
    assert sorted(path.name for path in maps.iterdir()) == sorted(drawn)
    assert [row["problem"] is None for row in rows.values()] == [row["heatmap"] is not None for row in rows.values()]
    (note,) = (note for note in document["notes"] if note.startswith("Heatmaps are Grad-CAMs of"))
    assert f"Grad-CAMs of {source}" in note
    assert (f"not of {variant} itself" in note) == (variant != source)
    for path in maps.iterdir():
        assert not any(name in path.name for name in ("MEIER", "SCHMID", "film"))
        with Image.open(path) as picture:
            assert picture.info == {}
            assert picture.width == 2 * PICTURE_PX
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        left, right = pixels[:PICTURE_PX, :PICTURE_PX], pixels[:PICTURE_PX, PICTURE_PX:]
        assert (right.max(axis=2) >= left.max(axis=2) * (1 - heatmaps.OPACITY) - 1).all()
        assert np.ptp(left, axis=2).max() == 0
        assert (pixels[PICTURE_PX:] < 128).any()
    again = chestx("predict", inbox, "--study", study, "--variant", variant, "--json").json()
    assert [row["probability"] for row in again["rows"]] == [row["probability"] for row in document["rows"]]


def opened(study: Path, variant: str, folder: Path) -> Heatmaps:
    run = Run(line="", command="", options={}, reporter=SilentReporter())
    place = Study(study)
    record = place.read_variant(variant)
    return open_heatmaps(folder, place, record, predictor_of_variant(run, place, record))


def test_it_is_the_gradient_weighted_sum_of_the_last_features(study: Path, tmp_path: Path) -> None:
    import torch

    maps = opened(study, "baseline", tmp_path / "maps")
    pixels = np.asarray(draw_image(np.random.default_rng(1), bright=True, side_px=32))
    inputs = torch.from_numpy(maps.preprocessing.normalised(pixels[None]))
    kept: list[Any] = []
    hook = maps.layer.register_forward_hook(lambda *given: kept.append(given[2]))
    logits = maps.network(inputs)
    hook.remove()
    features = kept[0]
    (gradient,) = torch.autograd.grad((logits[:, maps.positive] - logits[:, 1 - maps.positive]).sum(), features)
    coarse = (gradient.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1, keepdim=True).relu()
    expected = torch.nn.functional.interpolate(coarse, pixels.shape, mode="bilinear")[0, 0].detach().numpy()
    found = maps._evidence(pixels)
    assert found.shape == pixels.shape
    if expected.max() > 0:
        expected = expected / expected.max()
    assert np.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("backbone", "side"), [(name, 64) for name in BACKBONES if name not in {"tiny", "plain"}] + [("tiny", 32)]
)
def test_every_backbone_has_a_last_feature_layer(backbone: str, side: int) -> None:
    layer = last_feature_layer(build_classifier(backbone, 2), side)
    assert layer is not None
    assert type(layer).__name__ in {"Conv2d", "BatchNorm2d"}


def test_a_picture_without_evidence_is_the_film_and_says_so(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = opened(study, "baseline", tmp_path / "maps")
    pixels = np.asarray(draw_image(np.random.default_rng(1), bright=True, side_px=32))
    row = predictor_row(study)
    monkeypatch.setattr(Heatmaps, "_evidence", lambda _maps, _pixels: np.zeros((32, 32), dtype=np.float32))
    overlay = maps.overlay_of(pixels)
    assert any("no evidence for PNEUMONIA" in line for line in maps._caption(row, overlay))
    assert NOT_A_DEVICE in maps._caption(row, overlay)
    content = maps._png(pixels, overlay, row)
    (tmp_path / "a.png").write_bytes(content)
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    assert np.array_equal(picture[:PICTURE_PX, :PICTURE_PX], picture[:PICTURE_PX, PICTURE_PX:])


def predictor_row(study: Path) -> Any:
    import chestx_cli

    return chestx_cli.open_study(study).variant("baseline").predict(np.eye(32, dtype=np.uint8) * 255).rows[0]


def test_what_cannot_be_drawn_is_refused_before_anything_is_predicted(
    chestx: Chestx, study: Path, inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("predict", inbox, "--heatmap")
    inside = chestx(*words, inbox / "maps", "--study", study)
    assert inside.code == 2
    assert "lies among the images" in inside.err
    assert chestx("export", "baseline", "--study", study, "--out", tmp_path / "bundle").code == 0
    bundle = chestx(*words, tmp_path / "maps", "--bundle", tmp_path / "bundle")
    assert bundle.code == 2
    assert "a bundle has none" in bundle.err
    shutil.copytree(study, tmp_path / "study")
    edit(
        tmp_path / "study" / "variants" / "baseline" / "variant.json",
        lambda content: content.replace(b'"model_sha256": "', b'"model_sha256": "0'),
    )
    other = chestx(*words, tmp_path / "maps", "--study", tmp_path / "study", "--variant", "static-int8")
    assert other.code == 1
    assert "was made again since static-int8" in " ".join(other.err.split())
    monkeypatch.setattr(heatmaps, "find_spec", lambda _: None)
    missing = chestx(*words, tmp_path / "maps", "--study", study)
    assert missing.code == 1
    assert heatmaps.INSTALL in missing.err
    assert not (tmp_path / "maps").exists()


def test_a_run_that_goes_on_draws_the_new_ones(chestx: Chestx, study: Path, inbox: Path, tmp_path: Path) -> None:
    words = ("predict", inbox, "--study", study, "--csv", tmp_path / "p.csv", "--heatmap", tmp_path / "maps", "--json")
    assert chestx(*words).code == 1
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "maps").iterdir()}
    draw_image(np.random.default_rng(9), bright=True).save(inbox / "z.png")
    document = json.loads(chestx(*words).out)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "maps").iterdir()}
    assert before.items() <= after.items()
    assert len(after) == len(before) + 1
    assert document["resumed"] == 4


def test_heatmaps_that_an_earlier_run_was_not_asked_for_are_drawn(
    chestx: Chestx, study: Path, inbox: Path, tmp_path: Path
) -> None:
    maps = tmp_path / "maps"
    words = ("predict", inbox, "--study", study, "--csv", tmp_path / "p.csv", "--json")
    assert chestx(*words).code == 1
    before = (tmp_path / "p.csv").read_bytes()
    document = chestx(*words, "--heatmap", maps).json()
    assert document["resumed"] == 4
    assert (tmp_path / "p.csv").read_bytes() == before
    by_one_run = chestx("predict", inbox, "--study", study, "--heatmap", tmp_path / "others", "--json").json()
    expected = {row["heatmap"] for row in by_one_run["rows"] if row["heatmap"]}
    assert {path.name for path in maps.iterdir()} == expected
    for name in expected:
        assert (maps / name).read_bytes() == (tmp_path / "others" / name).read_bytes()
    # What is there stays, and what is gone is drawn again, or counted where its image is gone, too.
    first, second, _ = (maps / name for name in sorted(expected))
    first.unlink()
    second.write_bytes(b"kept")
    assert chestx(*words, "--heatmap", maps).code == 1
    assert first.exists()
    assert second.read_bytes() == b"kept"


def test_a_class_in_a_script_that_the_font_lacks_is_numbered(study: Path, tmp_path: Path) -> None:
    row = predictor_row(study)
    ours = {"NORMAL": "NORMAL", "PNEUMONIA": "肺炎"}
    maps = opened(study, "baseline", tmp_path / "maps")
    maps = replace(maps, classes=tuple(ours[label] for label in maps.classes))
    row = replace(row, probability={"肺炎": 0.75}, decision="肺炎")
    caption = maps._caption(row, maps.overlay_of(np.eye(32, dtype=np.uint8) * 255))
    assert "class 2 of 2 0.750, called class 2 of 2 at" in caption[0]
    assert "shown by its number" in caption[1]
    assert all(map(can_be_drawn, caption))
