"""Copies of a radiograph: equal files, equal pixels and near-duplicates stay together, other images do not."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chestx_cli.data import duplicates
from chestx_cli.data.synthetic.sets import write_synthetic_set
from conftest import Chestx

PATIENTS = 12


def darker(image: Image.Image) -> Image.Image:
    return image.point([max(0, level - 30) for level in range(256)])


def low_contrast(image: Image.Image) -> Image.Image:
    return image.point([round(60 + 0.6 * level) for level in range(256)])


def half(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)


COPIES: dict[str, tuple[str, Callable[[Image.Image], Image.Image]]] = {
    "recompressed": ("jpeg", lambda image: image),
    "darker": ("png", darker),
    "low contrast": ("png", low_contrast),
    "half": ("png", half),
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of synthetic radiographs; tests must not change it."""
    folder = tmp_path_factory.mktemp("drawn") / "data"
    write_synthetic_set(folder, images=60, seed=3, size_px=128)
    return folder


def test_every_copy_is_kept_with_its_original(chestx: Chestx, drawn: Path, tmp_path: Path) -> None:
    planted = []
    data = tmp_path / "data"
    for label in ("NORMAL", "PNEUMONIA"):
        (data / label).mkdir(parents=True)
        for path in sorted((drawn / label).glob("*.png")):
            (data / label / path.name).write_bytes(path.read_bytes())
    originals = sorted((data / "NORMAL").iterdir())
    for number, (path, (suffix, change)) in enumerate(zip(originals, itertools.cycle(COPIES.values()), strict=False)):
        copy = path.with_name(f"9{number:07d}_000.{suffix}")
        change(Image.open(path)).save(copy, quality=60)
        planted.append((f"NORMAL/{path.name}", f"NORMAL/{copy.name}"))
    groups = pd.DataFrame(
        {"path": path.relative_to(data).as_posix(), "group": path.name[:8]} for path in sorted(data.rglob("*_*.*"))
    )
    groups.to_csv(tmp_path / "groups.csv", index=False)
    study = tmp_path / "s"
    record = chestx("split", data, "--study", study, "--groups", tmp_path / "groups.csv", "--json").json()
    table = pd.read_csv(study / "split.csv").astype(str)
    made = dict(zip(table["path"], table["group"] + table["split"], strict=True))
    for original, twin in planted:
        assert made[original] == made[twin], twin
    counted = {row["kind"]: row["pairs"] for row in record["audit"]["duplicates"]}
    assert counted[duplicates.NEAR] >= len(planted)
    # Nobody else is joined: the patients are those drawn.
    assert record["patients"] == len({path.name[:8] for path in drawn.rglob("*.png")})
    assert (study / "report" / "figures" / "near-duplicates.png").stat().st_size > 10_000
    assert {row["rule"] for row in record["group_rules"]} == {"--groups"}


def test_hashes_are_those_of_imagehash(drawn: Path) -> None:
    images = [Image.open(path).resize((64, 64)) for path in sorted(drawn.rglob("*.png"))[:20]]
    ours = duplicates.perceptual_hashes(np.stack([np.asarray(image) for image in images]))
    for image, mine in zip(images, ours, strict=True):
        theirs = imagehash.phash(image, hash_size=16, highfreq_factor=4).hash.reshape(-1)
        bits = np.unpackbits(mine.view(np.uint8))
        # A coefficient that equals the median but for rounding may fall on either side.
        assert (bits != theirs).sum() <= 2


@pytest.mark.parametrize("flips", [0, 1, 10, 23])
def test_hashes_that_differ_in_few_bits_are_always_proposed(flips: int) -> None:
    rng = np.random.default_rng(flips)
    bits = rng.integers(0, 2, (300, 256), dtype=np.uint8)
    copies = bits.copy()
    for row in copies:
        row[rng.permutation(256)[:flips]] ^= 1
    hashes = np.packbits(np.concatenate([bits, copies]), axis=1).view(np.uint64)
    proposed = {tuple(pair) for pair in duplicates.propose_pairs(hashes).tolist()}
    assert proposed == {(row, row + 300) for row in range(300)}


def test_blank_images_are_no_near_duplicates() -> None:
    thumbs = np.stack([np.full((64, 64), level, dtype=np.uint8) for level in (0, 90, 255)])
    assert duplicates.correlations(thumbs, np.array([(0, 1), (1, 2)])).tolist() == [0, 0]
