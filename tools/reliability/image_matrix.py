"""All kinds of PNG, JPEG, TIFF, BMP and WebP, read or refused: format × depth × polarity × compression.

Each file is made here from known values, with the expected result: the pixels, derived from the format's standard and
not from chestx, or the code of its refusal.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chestx_cli.data.images.formats.refusals import Reason
from tools.reliability import encoders
from tools.reliability.encoders import Tiff, bmp, jpeg_frame, lossless_jpeg, png

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Grey = npt.NDArray[np.uint8]
    Values = npt.NDArray[np.int64]

# Odd, so that rows end within a byte, and large enough for JPEG 2000.
HEIGHT, WIDTH = 33, 37


@dataclass(frozen=True, kw_only=True)
class Case:
    """A file with its expected grey pixels, within `tolerance` for lossy formats, or the code of its refusal.

    `value_bits` is the range from which values of more than 8 bits are scaled, `modules` the libraries with a decoder.
    """

    name: str
    content: bytes = field(repr=False)
    expected: Grey | Reason
    tolerance: int = 0
    value_bits: int = 16
    modules: tuple[str, ...] = ()

    def failure(self, found: Grey | Reason) -> str:
        """Return the difference from the expected result; empty if there is none."""
        import numpy as np

        if isinstance(self.expected, Reason) or isinstance(found, Reason):
            same = isinstance(found, Reason) and found is self.expected
            return "" if same else f"{self.name}: {_brief(found)} and not {_brief(self.expected)}"
        if found.shape != self.expected.shape:
            return f"{self.name}: {found.shape} and not {self.expected.shape}"
        most = int(np.abs(found.astype(int) - self.expected.astype(int)).max())
        return "" if most <= self.tolerance else f"{self.name}: greys differ by up to {most}"


def _brief(expected: Grey | Reason) -> str:
    return f"refused as {expected}" if isinstance(expected, Reason) else "read"


def film(top: int, *, seed: int = 0) -> Values:
    """Return values [H, W] from 0 to `top`, both of which occur, without a dominant grey value."""
    import numpy as np

    rng = np.random.default_rng(seed)
    values = rng.integers(0, top + 1, (HEIGHT, WIDTH), dtype=np.int64)
    values[0, :2] = 0, top
    return values


def smooth_film(top: int = 255) -> Values:
    """Return a gradient, which lossy compression barely changes."""
    import numpy as np

    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.asarray((rows / (HEIGHT - 1) + columns / (WIDTH - 1)) / 2 * top + 0.5).astype(np.int64)


def scaled(values: Values, top: int) -> Grey:
    """Return values as grey, with `top` as white."""
    import numpy as np

    return np.asarray((values * 255 + top // 2) // top, dtype=np.uint8)


def luma(colours: Values) -> Grey:
    """Return colours [H, W, 3] as grey (ITU-R BT.601, in 16 bits)."""
    import numpy as np

    red, green, blue = (colours[..., index] for index in range(3))
    return np.asarray((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16, dtype=np.uint8)


def colours_of(top: int) -> Values:
    """Return an image in each of three colours, [H, W, 3]."""
    import numpy as np

    return np.stack([film(top, seed=seed) for seed in (1, 2, 3)], axis=-1)


def _png_cases() -> Iterator[Case]:
    import numpy as np

    grey, colour, indexed, grey_alpha, colour_alpha = 0, 2, 3, 4, 6
    for filter_type, interlaced in itertools.product(range(5), (False, True)):
        how = f"filter {filter_type}{', interlaced' if interlaced else ''}"

        def made(
            values: Values, bits: int, kind: int, palette: bytes = b"", how: Any = (filter_type, interlaced)
        ) -> bytes:
            return png(values, bits=bits, colour=kind, filter_type=how[0], palette=palette, interlaced=how[1])

        for bits in (1, 2, 4, 8):
            values = film(2**bits - 1)
            yield Case(
                name=f"grey {bits} bits, {how}", content=made(values, bits, grey), expected=scaled(values, 2**bits - 1)
            )
            table = np.array([(9 * i % 256, 5 * i % 256, (255 - 3 * i) % 256) for i in range(2**bits)])
            yield Case(
                name=f"palette {bits} bits, {how}",
                content=made(values, bits, indexed, table.astype(np.uint8).tobytes()),
                expected=luma(table[values]),
            )
        for used in (8, 10, 12, 14, 16):
            values = film(2**used - 1)
            yield Case(
                name=f"grey 16 bits, {used} in use, {how}",
                content=made(values, 16, grey),
                expected=scaled(values, 2**used - 1),
                value_bits=used,
            )
        for bits in (8, 16):
            shift, colours = bits - 8, colours_of(2**bits - 1)
            alpha = film(2**bits - 1, seed=9)[..., None]
            values = film(2**bits - 1)
            yield Case(
                name=f"colour {bits} bits, {how}", content=made(colours, bits, colour), expected=luma(colours >> shift)
            )
            yield Case(
                name=f"grey and alpha {bits} bits, {how}",
                content=made(np.concatenate([values[..., None], alpha], axis=-1), bits, grey_alpha),
                expected=(values >> shift).astype(np.uint8),
            )
            yield Case(
                name=f"colour and alpha {bits} bits, {how}",
                content=made(np.concatenate([colours, alpha], axis=-1), bits, colour_alpha),
                expected=luma(colours >> shift),
            )
    for kind, values in ((colour, colours_of(4095)), (grey_alpha, colours_of(4095)[..., :2])):
        yield Case(
            name=f"type {kind} of 16 bits, 12 in use",
            content=png(values, bits=16, colour=kind),
            expected=Reason.UNSUPPORTED,
        )
    beyond = film(2**14 - 1)
    yield Case(
        name="grey 16 bits, 14 in use, range of 12",
        content=png(beyond, bits=16, colour=grey),
        expected=Reason.VALUE_RANGE,
        value_bits=12,
    )
    yield Case(
        name="grey 16 bits, 12 in use, range of 16",
        content=png(film(4095), bits=16, colour=grey),
        expected=scaled(film(4095), 65535),
    )
    for bits, level in itertools.product((1, 8, 16), (0, 1)):
        flat = np.full((HEIGHT, WIDTH), level * (2**bits - 1), dtype=np.int64)
        yield Case(
            name=f"one grey, {level} of {bits} bits",
            content=png(flat, bits=bits, colour=grey),
            expected=Reason.ONE_GREY,
        )
    dark = film(100)
    yield Case(name="one grey once scaled, 16 bits", content=png(dark, bits=16, colour=grey), expected=Reason.ONE_GREY)


# Single-sample images that Pillow opens: byte orders by depth, with and without a stored polarity.
_TIFF_READ = {
    **dict.fromkeys((1, 2, 4, 8), (("<", ">"), ("<", ">"))),
    12: (("<",), ()),
    16: (("<", ">"), ("<",)),
    32: (("<",), ()),
}


def _tiff_cases() -> Iterator[Case]:
    import numpy as np

    compressions = {
        "uncompressed": encoders.NONE,
        "PackBits": encoders.PACKBITS,
        "LZW": encoders.LZW,
        "deflate": encoders.DEFLATE,
        "old deflate": encoders.OLD_DEFLATE,
    }
    names = {0: "white is zero", 1: "black is zero", None: "no polarity"}
    for bits, order, (compression_name, compression), photometric, tiled in itertools.product(
        _TIFF_READ, "<>", compressions.items(), names, (False, True)
    ):
        used = min(bits, 16)
        values = film(2**used - 1)
        grey = scaled(values, 2**used - 1)
        reads = order in _TIFF_READ[bits][photometric is None]
        stored = Tiff(bits=bits, photometric=photometric, order=order, compression=compression, tiled=tiled)
        yield Case(
            name=f"{order}{bits} bits, {names[photometric]}, {compression_name}{', tiled' if tiled else ''}",
            content=stored.write(values),
            expected=(255 - grey if photometric == 0 else grey) if reads else Reason.UNSUPPORTED,
            value_bits=max(used, 8),
        )
    for used, photometric, order in itertools.product((8, 10, 12, 14), (0, 1), "<>"):
        values = film(2**used - 1)
        grey = scaled(values, 2**used - 1)
        yield Case(
            name=f"{order}16 bits, {used} in use, {names[photometric]}",
            content=Tiff(bits=16, photometric=photometric, order=order).write(values),
            expected=255 - grey if photometric == 0 else grey,
            value_bits=used,
        )
    for bits, photometric, order in itertools.product((1, 8, 16), (0, 1), "<>"):
        values = film(2**bits - 1)
        grey = scaled(values, 2**bits - 1)
        # Pillow does not support big-endian files of this kind.
        yield Case(
            name=f"{order}{bits} bits in BigTIFF, {names[photometric]}",
            content=Tiff(bits=bits, photometric=photometric, order=order, big=True).write(values),
            expected=Reason.UNSUPPORTED if order == ">" else 255 - grey if photometric == 0 else grey,
        )
    for bits, photometric in itertools.product((1, 2, 4, 8), (0, 1)):
        values = film(2**bits - 1)
        grey = scaled(values, 2**bits - 1)
        yield Case(
            name=f"{bits} bits from the right, {names[photometric]}",
            content=Tiff(bits=bits, photometric=photometric, fill_order=2).write(values),
            expected=255 - grey if photometric == 0 else grey,
        )
    for bits, order in itertools.product((8, 16), "<>"):
        colours = colours_of(2**bits - 1)
        yield Case(
            name=f"{order}colour {bits} bits",
            content=Tiff(bits=bits, photometric=2, order=order).write(colours),
            expected=luma(colours >> (bits - 8)),
        )
    yield Case(
        name="colour 16 bits, 12 in use",
        content=Tiff(bits=16, photometric=2).write(colours_of(4095)),
        expected=Reason.UNSUPPORTED,
    )
    for bits in (1, 2, 4, 8):
        values = film(2**bits - 1)
        table = np.array([(9 * i % 256, 5 * i % 256, (255 - 3 * i) % 256) for i in range(2**bits)])
        yield Case(
            name=f"palette {bits} bits",
            content=Tiff(bits=bits, photometric=3, colours=tuple((table.T.ravel() * 257).tolist())).write(values),
            expected=luma(table[values]),
        )
    for bits, order in itertools.product((16, 32), "<>"):
        values = film(4095)
        yield Case(
            name=f"{order}signed {bits} bits, none negative",
            content=Tiff(bits=bits, photometric=1, order=order, sample_format=2).write(values),
            expected=scaled(values, 4095),
            value_bits=12,
        )
        yield Case(
            name=f"{order}signed {bits} bits, some negative",
            content=Tiff(bits=bits, photometric=1, order=order, sample_format=2).write(values - 2000),
            expected=Reason.UNSUPPORTED,
        )
    floats = film(255).astype(np.float64)
    refused: dict[str, bytes] = {
        "signed 8 bits": Tiff(bits=8, photometric=1, sample_format=2).write(film(255) - 128),
        "32 bits beyond 16": Tiff(bits=32, photometric=1).write(film(70_000)),
        "64 bits": Tiff(bits=64, photometric=1).write(film(255)),
        "floating point 16 bits": Tiff(bits=16, photometric=1, sample_format=3).write(floats),
        "floating point 32 bits": Tiff(bits=32, photometric=1, sample_format=3).write(floats),
        "floating point 64 bits": Tiff(bits=64, photometric=1, sample_format=3).write(floats),
        "CIELAB": Tiff(bits=8, photometric=8).write(colours_of(255)),
        "colour filter array": Tiff(bits=8, photometric=32803).write(film(255)),
        "colour without polarity": Tiff(bits=8, photometric=None).write(colours_of(255)),
        "transparency mask": Tiff(bits=1, photometric=4).write(film(1)),
        "JPEG inside": _tiffby_pillow("jpeg"),
        "fax inside": _tiffby_pillow("group4"),
    }
    for name, content in refused.items():
        yield Case(name=name, content=content, expected=Reason.UNSUPPORTED)
    yield Case(name="several pages", content=_tiffby_pillow(None, pages=2), expected=Reason.SEVERAL_IMAGES)
    for photometric in (0, 1):
        flat = np.full((HEIGHT, WIDTH), 700, dtype=np.int64)
        yield Case(
            name=f"one grey of 16 bits, {names[photometric]}",
            content=Tiff(bits=16, photometric=photometric).write(flat),
            expected=Reason.ONE_GREY,
        )


def by_pillow(values: Values, form: str, mode: str | None = None, **options: Any) -> bytes:
    import numpy as np
    from PIL import Image

    image = Image.fromarray(values.astype(np.uint8))
    buffer = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(buffer, form, **options)
    return buffer.getvalue()


def _tiffby_pillow(compression: str | None, pages: int = 1) -> bytes:
    import numpy as np
    from PIL import Image

    image = Image.fromarray(film(255).astype(np.uint8))
    image = image.convert("1") if compression == "group4" else image
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", compression=compression, save_all=pages > 1, append_images=[image] * (pages - 1))
    return buffer.getvalue()


def _jpeg_cases() -> Iterator[Case]:
    import numpy as np

    grey, colours = smooth_film(), np.stack([smooth_film(), 255 - smooth_film(), smooth_film(128)], axis=-1)
    for progressive, quality in itertools.product((False, True), (75, 100)):
        how = f"quality {quality}{', progressive' if progressive else ''}"
        options: dict[str, Any] = {"progressive": progressive, "quality": quality}
        yield Case(
            name=f"grey, {how}",
            content=by_pillow(grey, "JPEG", **options),
            expected=grey.astype(np.uint8),
            tolerance=3,
        )
        for subsampling in (0, 1, 2):
            yield Case(
                name=f"colour, subsampling {subsampling}, {how}",
                content=by_pillow(colours, "JPEG", **options, subsampling=subsampling),
                expected=luma(colours),
                tolerance=6,
            )
        yield Case(
            name=f"CMYK, {how}",
            content=by_pillow(colours, "JPEG", "CMYK", **options),
            expected=luma(colours),
            tolerance=6,
        )
    for bits, (name, marker) in itertools.product(
        (8, 12, 16),
        {"extended": 0xC1, "lossless": 0xC3, "hierarchical": 0xC5, "JPEG-LS": 0xF7}.items(),
    ):
        if bits == 8 and marker in (0xC1, 0xC3):
            continue
        yield Case(
            name=f"{name} of {bits} bits",
            content=jpeg_frame(marker, bits=bits, width=WIDTH, height=HEIGHT),
            expected=Reason.UNSUPPORTED,
        )
    whole = lossless_jpeg(film(255), 8)
    yield Case(name="lossless of 8 bits", content=whole, expected=film(255).astype(np.uint8))
    yield Case(
        name="one grey",
        content=by_pillow(np.full((HEIGHT, WIDTH), 90), "JPEG"),
        expected=Reason.ONE_GREY,
    )


def _bmp_cases() -> Iterator[Case]:
    import numpy as np

    for top_down in (False, True):
        how = "top down" if top_down else "bottom up"
        for bits in (1, 4, 8):
            values = film(2**bits - 1)
            table = [(9 * i % 256, 5 * i % 256, (255 - 3 * i) % 256) for i in range(2**bits)]
            yield Case(
                name=f"palette {bits} bits, {how}",
                content=bmp(values, bits=bits, palette=table, top_down=top_down),
                expected=luma(np.array(table)[values]),
            )
            steps = np.arange(2**bits) * 255 // (2**bits - 1)
            yield Case(
                name=f"grey {bits} bits, {how}",
                content=bmp(values, bits=bits, palette=[(int(s), int(s), int(s)) for s in steps], top_down=top_down),
                expected=steps[values].astype(np.uint8),
            )
        for bits in (24, 32):
            colours = colours_of(255)
            yield Case(
                name=f"colour {bits} bits, {how}",
                content=bmp(colours, bits=bits, top_down=top_down),
                expected=luma(colours),
            )
        fifth = colours_of(255)
        yield Case(
            name=f"colour 16 bits, {how}",
            content=bmp(fifth, bits=16, top_down=top_down),
            expected=luma((fifth >> 3) * 255 // 31),
            tolerance=1,
        )
    whole = bytearray(bmp(film(255), bits=8, palette=[(i, i, i) for i in range(256)]))
    whole[30] = 1
    yield Case(name="run-length coded", content=bytes(whole), expected=Reason.UNSUPPORTED)


def _webp_cases() -> Iterator[Case]:
    import numpy as np

    colours = colours_of(255)
    for method in (0, 6):
        yield Case(
            name=f"lossless colour, method {method}",
            content=by_pillow(colours, "WEBP", lossless=True, method=method),
            expected=luma(colours),
        )
        yield Case(
            name=f"lossless grey, method {method}",
            content=by_pillow(film(255), "WEBP", lossless=True, method=method),
            expected=film(255).astype(np.uint8),
        )
        yield Case(
            name=f"lossy grey, method {method}",
            content=by_pillow(smooth_film(), "WEBP", quality=100, method=method),
            expected=smooth_film().astype(np.uint8),
            tolerance=12,
        )
    alpha = np.concatenate([colours, np.full((HEIGHT, WIDTH, 1), 120)], axis=-1)
    yield Case(
        name="lossless colour and alpha",
        content=by_pillow(alpha, "WEBP", lossless=True, exact=True),
        expected=luma(colours),
    )


RASTERS: dict[str, Callable[[], Iterator[Case]]] = {
    "PNG": _png_cases,
    "TIFF": _tiff_cases,
    "JPEG": _jpeg_cases,
    "BMP": _bmp_cases,
    "WebP": _webp_cases,
}
