"""Files and images: written whole or not at all, decoded or refused with a reason."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chestx_cli.errors import StorageError
from chestx_cli.files import folder_appears_whole, write_atomic
from chestx_cli.images import Preprocessing, decode_grey
from chestx_cli.refusals import UnreadableImageError
from conftest import Chestx, tree


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    write_atomic(path, "old")
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StorageError, match="No space left on device") as refused:
        write_atomic(path, "new")
    assert "record.json" in refused.value.fact
    assert tree(tmp_path) == {"record.json": b"old"}


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    final = tmp_path / "variant"
    with folder_appears_whole(final) as folder:
        write_atomic(folder / "a", "1")
        assert not final.exists()
    with pytest.raises(ValueError, match="stop"), folder_appears_whole(final) as folder:
        write_atomic(folder / "a", "2")
        raise ValueError("stop")
    assert tree(tmp_path) == {"variant/a": b"1"}
    with folder_appears_whole(final) as folder:
        write_atomic(folder / "b", "3")
    assert tree(tmp_path) == {"variant/b": b"3"}


def test_a_full_disk_while_building_a_variant_keeps_the_old_one(
    chestx: Chestx, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(study / "variants")
    monkeypatch.setattr(os, "fsync", no_space)
    outcome = chestx("prune", "--study", study, "--amount", "0.3", "--name", "oneshot-50", "--force")
    assert outcome.code == 1
    assert "No space left on device" in outcome.err
    assert "Traceback" not in outcome.err
    assert tree(study / "variants") == before


def test_an_unwritable_study_is_told(chestx: Chestx, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    outcome = chestx("split", data, "--study", tmp_path / "file" / "study")
    assert outcome.code == 1
    assert "--study" in outcome.err
    assert "Traceback" not in outcome.err
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_study_without_permission_is_told(chestx: Chestx, data: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    outcome = chestx("split", data, "--study", locked / "study")
    assert outcome.code == 1
    assert "Permission denied" in outcome.err


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path)
    return path


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA"])
def test_every_mode_becomes_grey(tmp_path: Path, mode: str) -> None:
    pixels = np.zeros((20, 30), dtype=np.uint8)
    pixels[:, 15:] = 255
    grey, facts = decode_grey(save(tmp_path / "image.png", pixels, mode))
    assert (facts.width_px, facts.height_px, grey.mode) == (30, 20, "L")
    found = np.asarray(grey)
    assert found[:, :14].max() < 30
    assert found[:, 16:].min() > 225


def test_16_bit_images_are_scaled_not_clipped(tmp_path: Path) -> None:
    wide = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    grey = np.asarray(decode_grey(save(tmp_path / "wide.png", wide))[0])
    assert grey.ravel().tolist() == pytest.approx(list(range(256)), abs=1)


def test_what_is_no_image_is_refused_with_a_reason(tmp_path: Path) -> None:
    good = save(tmp_path / "good.jpeg", np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))
    contents = {
        "empty.png": (b"", "empty: the file has no bytes"),
        "text.png": (b"this is text", "not a PNG"),
        "page.png": (b"<html></html>", "not a PNG"),
        "cut.jpeg": (good.read_bytes()[:400], "damaged"),
        "header.png": (b"\x89PNG\r\n\x1a\n", "not a PNG|damaged"),
    }
    for name, (content, reason) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableImageError, match=reason):
            decode_grey(tmp_path / name)
    with pytest.raises(UnreadableImageError, match="not-a-file: a folder"):
        decode_grey(tmp_path)
    with pytest.raises(UnreadableImageError, match="missing: No such file"):
        decode_grey(tmp_path / "missing.png")


def test_a_decompression_bomb_is_refused_before_it_unfolds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chestx_cli.refusals.MAX_PIXELS", 100)
    path = save(tmp_path / "large.png", np.zeros((20, 20), dtype=np.uint8))
    with pytest.raises(UnreadableImageError, match="20×20 pixels"):
        decode_grey(path)


def test_normalisation_is_that_of_imagenet() -> None:
    import torch
    from torchvision.transforms import v2

    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)
    expected = v2.Compose(
        [
            v2.Grayscale(num_output_channels=3),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )(torch.from_numpy(pixels)[:, None])
    assert Preprocessing().normalised(pixels) == pytest.approx(expected.numpy(), abs=1e-5)
