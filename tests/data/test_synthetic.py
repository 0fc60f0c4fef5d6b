"""The synthetic data set: repeatable, clearly labelled, and without shortcuts to the class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from chestx_cli.core.errors import ChestxError
from chestx_cli.data.synthetic.radiographs import draw_anatomy, draw_opacity, draw_radiograph
from chestx_cli.data.synthetic.sets import SyntheticSet, write_synthetic_set

if TYPE_CHECKING:
    from pathlib import Path

SIZE_PX = 96


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SyntheticSet]:
    out = tmp_path_factory.mktemp("synthetic")
    return out, write_synthetic_set(out, images=120, seed=5, size_px=SIZE_PX)


def _files(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*.*"))}


def _separation(measure: dict[str, float]) -> float:
    """AUROC of a per-image number for the class, whichever way round separates better."""
    is_pneumonia = [name.startswith("PNEUMONIA/") for name in measure]
    auroc = float(roc_auc_score(is_pneumonia, list(measure.values())))
    return max(auroc, 1 - auroc)


def _measure(out: Path, number: str) -> dict[str, float]:
    measured: dict[str, float] = {}
    for path in sorted(out.rglob("*.png")):
        name = path.relative_to(out).as_posix()
        if number == "brightness":
            measured[name] = float(np.asarray(Image.open(path)).mean())
        elif number == "file size":
            measured[name] = float(path.stat().st_size)
        else:
            measured[name] = float(path.name.split("_")[0])
    return measured


def test_same_seed_writes_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_synthetic_set(tmp_path / folder, images=40, seed=seed, size_px=SIZE_PX)
    assert _files(tmp_path / "a") == _files(tmp_path / "b")
    assert _files(tmp_path / "a") != _files(tmp_path / "c")


def test_value_returned_agrees_with_the_files(written: tuple[Path, SyntheticSet]) -> None:
    out, made = written
    names = {label: [path.name for path in (out / label).glob("*.png")] for label in ("NORMAL", "PNEUMONIA")}
    patients = {name.split("_")[0] for label in names for name in names[label]}
    assert (made.normal, made.pneumonia) == (len(names["NORMAL"]), len(names["PNEUMONIA"])) == (60, 60)
    assert (made.images, made.patients) == (120, len(patients))
    assert "no real patient" in (out / "SYNTHETIC.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("images", [40, 41])
def test_asked_number_is_written_and_reported_image_by_image(tmp_path: Path, images: int) -> None:
    ticks: list[None] = []
    made = write_synthetic_set(tmp_path, images=images, seed=0, size_px=64, on_image=lambda: ticks.append(None))
    assert len(ticks) == made.images == made.normal + made.pneumonia == images
    assert len(list(tmp_path.rglob("*.png"))) == images


def test_a_patient_has_one_label_and_one_to_four_images(written: tuple[Path, SyntheticSet]) -> None:
    out, _ = written
    labels: dict[str, list[str]] = {}
    for path in out.rglob("*.png"):
        patient, image = path.stem.split("_")
        assert (len(patient), len(image)) == (8, 3)
        labels.setdefault(patient, []).append(path.parent.name)
    assert all(len(set(of_patient)) == 1 for of_patient in labels.values())
    assert {len(of_patient) for of_patient in labels.values()} <= {1, 2, 3, 4}
    assert max(len(of_patient) for of_patient in labels.values()) > 1


@pytest.mark.parametrize("number", ["brightness", "file size", "patient"])
def test_no_single_number_tells_the_classes_apart(written: tuple[Path, SyntheticSet], number: str) -> None:
    out, _ = written
    assert _separation(_measure(out, number)) < 0.75


def test_images_of_both_classes_have_one_size_and_mode(written: tuple[Path, SyntheticSet]) -> None:
    out, _ = written
    assert {(image.size, image.mode) for image in map(Image.open, out.rglob("*.png"))} == {((SIZE_PX, SIZE_PX), "L")}


def test_opacity_adds_density_to_the_lungs_and_touches_nothing_else() -> None:
    rng = np.random.default_rng(3)
    for seed in range(6):
        anatomy, opacity = draw_anatomy(rng), draw_opacity(rng)
        clear, ill = (
            draw_radiograph(anatomy, shown, np.random.default_rng(seed), size_px=SIZE_PX).astype(int)
            for shown in (None, opacity)
        )
        added = ill - clear
        assert added.min() >= -1
        assert added.max() >= 5
        # The corners hold the text, the air beside the neck and the abdomen, never lung.
        border_px = SIZE_PX // 12
        for corner in (added[:border_px], added[-border_px:]):
            assert np.abs(corner).max() == 0


def test_films_of_one_patient_differ_but_less_than_films_of_two() -> None:
    rng = np.random.default_rng(8)
    within, between = [], []
    for _ in range(10):
        one, other = draw_anatomy(rng), draw_anatomy(rng)
        first, second = (draw_radiograph(one, None, np.random.default_rng(s), size_px=SIZE_PX) for s in (1, 2))
        stranger = draw_radiograph(other, None, np.random.default_rng(2), size_px=SIZE_PX)
        within.append(1 - np.corrcoef(first.ravel(), second.ravel())[0, 1])
        between.append(1 - np.corrcoef(first.ravel(), stranger.ravel())[0, 1])
    assert 0 < np.mean(within) < np.mean(between)


def test_films_of_both_classes_bear_the_same_text_in_the_same_place() -> None:
    rng = np.random.default_rng(4)
    inked = []
    for opacity in (None, draw_opacity(rng), None):
        film = draw_radiograph(draw_anatomy(rng), opacity, rng, size_px=256)
        # The corner lies above the shoulder, where a film shows air: what is bright there is the text.
        inked.append(film[:18, :30] > 120)
    assert inked[0].sum() >= 20
    assert all((mask == inked[0]).all() for mask in inked)


def test_fewer_than_forty_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ChestxError, match="39 synthetic images"):
        write_synthetic_set(tmp_path / "set", images=39, seed=0)
    assert not (tmp_path / "set").exists()


def test_images_too_small_to_show_a_chest_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ChestxError, match="32 px"):
        write_synthetic_set(tmp_path / "set", images=40, seed=0, size_px=32)


def test_a_folder_that_already_holds_images_is_refused(tmp_path: Path) -> None:
    write_synthetic_set(tmp_path, images=40, seed=0, size_px=64)
    with pytest.raises(ChestxError, match="already holds images"):
        write_synthetic_set(tmp_path, images=40, seed=1, size_px=64)
