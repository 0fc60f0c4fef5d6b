"""Bad and unusual images, one of each kind, generated on demand."""

from __future__ import annotations

import functools
import io
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.data.images.formats.refusals import Reason

if TYPE_CHECKING:
    from PIL.Image import Image

NAME = "00009999_000.png"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A function that puts an image of one kind into a folder, and the reason for refusal; None for a good image."""

    put: Callable[[Path], Path]
    reason: Reason | None
    # Whether the name is the special property, so that the image cannot take another image's name.
    by_name: bool = False


def content_of(image: Image, form: str = "PNG", **options: object) -> bytes:
    """Return an image as file content."""
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def radiograph(side_px: int = 96) -> Image:
    """Return grey noise on a gradient, which does not compress, so that a truncated file lacks pixels."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(5)
    return Image.fromarray(
        rng.integers(0, 200, (side_px, side_px)).astype(np.uint8) + np.arange(side_px, dtype=np.uint8) // 2
    )


def _file(make: Callable[[], bytes], name: str = NAME) -> Callable[[Path], Path]:
    def put(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(make())
        return path

    return put


def _cut(share: float) -> bytes:
    whole = content_of(radiograph())
    return whole[: int(len(whole) * share)]


def _flipped() -> bytes:
    content = bytearray(content_of(radiograph()))
    for at in range(len(content) // 4, len(content), len(content) // 12):
        content[at] ^= 1 << at % 8
    return bytes(content)


def _wide() -> bytes:
    import numpy as np
    from PIL import Image

    return content_of(Image.fromarray(np.asarray(radiograph()).astype(np.uint16) * 257))


def _animated() -> bytes:
    from PIL import ImageOps

    frames = [radiograph().convert("RGB"), ImageOps.flip(radiograph()).convert("RGB")]
    return content_of(frames[0], "WEBP", save_all=True, append_images=frames[1:])


def _rotated() -> bytes:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    return content_of(radiograph(), "JPEG", exif=exif)


def png_header(width: int, height: int, rows: bytes) -> bytes:
    """Return a grey 8-bit PNG with any size in its header and these compressed rows."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    about = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", about) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def compressed_zeros(size: int) -> bytes:
    """Return this many zeros, compressed."""
    packer, step = zlib.compressobj(1), 10**6
    return b"".join(packer.compress(bytes(step)) for _ in range(size // step)) + packer.flush()


@functools.cache
def pixel_bomb() -> bytes:
    """Return a 3 MB PNG that unpacks to 600 MB of zeros."""
    return png_header(30_000, 20_000, compressed_zeros(30_001 * 20_000))


@functools.cache
def many_scans() -> bytes:
    """Return a progressive JPEG of 49 million pixels with more than 2,000 scans."""
    from PIL import Image

    content = content_of(Image.new("L", (7000, 7000), 77), "JPEG", progressive=True)
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * 2000 + content[-2:]


@functools.cache
def _text_bomb() -> bytes:
    """Return a PNG with a comment that unpacks to 300 MB."""
    body = b"Comment\0\0" + compressed_zeros(300 * 10**6)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    content = content_of(radiograph())
    return content[:33] + chunk + content[33:]


def _folder(folder: Path) -> Path:
    path = folder / NAME
    path.mkdir()
    (path / "00009998_000.png").write_bytes(content_of(radiograph()))
    return path


def _link(target: str) -> Callable[[Path], Path]:
    def put(folder: Path) -> Path:
        path = folder / NAME
        path.symlink_to(target)
        return path

    return put


def _loop(folder: Path) -> Path:
    """Return a link into a cycle of two hidden links."""
    for name, target in ((".one", ".two"), (".two", ".one")):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(target)
    return _link(".one")(folder)


def _pipe(folder: Path) -> Path:
    path = folder / NAME
    os.mkfifo(path)
    return path


def _unreadable(folder: Path) -> Path:
    path = _file(lambda: content_of(radiograph()))(folder)
    path.chmod(0)
    return path


def _good(mode: str, form: str = "PNG") -> Callable[[Path], Path]:
    return _file(lambda: content_of(radiograph().convert(mode), form))


def _plain(width: int, height: int) -> Callable[[Path], Path]:
    from PIL import Image

    return _file(lambda: content_of(Image.new("L", (width, height), 9)))


KINDS: dict[str, Kind] = {
    "empty": Kind(put=_file(lambda: b""), reason=Reason.EMPTY),
    "header only": Kind(put=_file(lambda: content_of(radiograph())[:33]), reason=Reason.DAMAGED),
    "cut at 10 %": Kind(put=_file(lambda: _cut(0.1)), reason=Reason.DAMAGED),
    "cut at 50 %": Kind(put=_file(lambda: _cut(0.5)), reason=Reason.DAMAGED),
    "cut at 90 %": Kind(put=_file(lambda: _cut(0.9)), reason=Reason.DAMAGED),
    "cut at 99 %": Kind(put=_file(lambda: _cut(0.99)), reason=Reason.DAMAGED),
    "bit flips": Kind(put=_file(_flipped), reason=Reason.DAMAGED),
    "HTML named .png": Kind(put=_file(lambda: b"<html><script>alert(1)</script></html>"), reason=Reason.WRONG_FORMAT),
    "16-bit": Kind(put=_file(_wide), reason=None),
    "palette": Kind(put=_good("P"), reason=None),
    "RGBA": Kind(put=_good("RGBA"), reason=None),
    "CMYK": Kind(put=_good("CMYK", "JPEG"), reason=None),
    "animated": Kind(put=_file(_animated), reason=Reason.SEVERAL_IMAGES),
    "EXIF-rotated": Kind(put=_file(_rotated), reason=None),
    "1×1": Kind(put=_plain(1, 1), reason=Reason.TOO_SMALL),
    "1×100000": Kind(put=_plain(1, 100_000), reason=Reason.TOO_SMALL),
    "bomb of pixels": Kind(put=_file(pixel_bomb), reason=Reason.TOO_LARGE),
    "bomb of scans": Kind(put=_file(many_scans), reason=Reason.TOO_LARGE),
    "bomb of text": Kind(put=_file(_text_bomb), reason=Reason.DAMAGED),
    "directory": Kind(put=_folder, reason=Reason.NOT_A_FILE),
    "dangling link": Kind(put=_link("nowhere"), reason=Reason.MISSING),
    "link loop": Kind(put=_loop, reason=Reason.LINK_LOOP),
    "endless device": Kind(put=_link("/dev/zero"), reason=Reason.NOT_A_FILE),
    "FIFO": Kind(put=_pipe, reason=Reason.NOT_A_FILE),
    "unreadable": Kind(put=_unreadable, reason=Reason.NO_PERMISSION),
    "non-UTF-8 name": Kind(
        put=_file(lambda: content_of(radiograph()), os.fsdecode(b"00009999_\xff\xfe.png")),
        reason=Reason.BAD_NAME,
        by_name=True,
    ),
    "255-byte name": Kind(
        put=_file(lambda: content_of(radiograph()), "0" * 247 + "_000.png"), reason=None, by_name=True
    ),
}
