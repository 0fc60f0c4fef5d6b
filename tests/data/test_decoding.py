"""Images decoded to grey, or refused with a reason."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chestx_cli.core.files import read_regular
from chestx_cli.data.images.decoding import decode_grey
from chestx_cli.data.images.formats.refusals import UnreadableImageError
from chestx_cli.records.preprocessing import Preprocessing


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
    monkeypatch.setattr("chestx_cli.data.images.formats.refusals.MAX_PIXELS", 100)
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


def test_a_file_that_is_longer_than_it_was_said_to_be_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "growing"
    path.write_bytes(b"abc")
    told = path.stat()
    path.write_bytes(b"abcdefgh")
    monkeypatch.setattr(os, "fstat", lambda _: told)
    assert read_regular(path, 8) == b"abcdefgh"
    with pytest.raises(OSError, match="larger than") as refused:
        read_regular(path, 7)
    assert refused.value.errno == errno.EFBIG
