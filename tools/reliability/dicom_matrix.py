"""All kinds of DICOM images, read or refused: depth × sign × polarity × window × padding × transfer syntax."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from chestx_cli.data.images.formats.refusals import Reason
from tools.reliability import encoders
from tools.reliability.encoders import jpeg_frame, lossless_jpeg
from tools.reliability.image_matrix import HEIGHT, WIDTH, Case, by_pillow, colours_of, film, luma, smooth_film

if TYPE_CHECKING:
    import numpy.typing as npt

    from tools.reliability.image_matrix import Grey

UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
IMPLICIT, EXPLICIT, BIG_ENDIAN = UNCOMPRESSED
DEFLATED, RLE = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5"
JPEG_BASELINE, JPEG_EXTENDED, JPEG_LOSSLESS, JPEG_LOSSLESS_1 = (f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70))
JPEG_LS, JPEG_LS_NEAR, JPEG_2000_LOSSLESS = (f"1.2.840.10008.1.2.4.{n}" for n in (80, 81, 90))
# Video, references to external data, and other containers: none is read.
NO_DECODER = {
    "MPEG2": "1.2.840.10008.1.2.4.100",
    "MPEG-4": "1.2.840.10008.1.2.4.102",
    "HEVC": "1.2.840.10008.1.2.4.107",
    "JPIP": "1.2.840.10008.1.2.4.94",
    "encapsulated uncompressed": "1.2.840.10008.1.2.1.98",
}


def dicom(values: npt.NDArray[Any], *, syntax: str = EXPLICIT, frame: bytes | None = None, **elements: Any) -> bytes:
    """Return stored values, or an encoded frame of them, as a DICOM file; `elements` override the defaults.

    An element that is None is written empty, one that is `ABSENT` is omitted, and a pair is a value representation and
    a value.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3"
    dataset.Rows, dataset.Columns = values.shape[:2]
    dataset.SamplesPerPixel = 1 if values.ndim == 2 else values.shape[2]
    if values.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = "MONOCHROME2" if values.ndim == 2 else "RGB"
    dataset.BitsAllocated = dataset.BitsStored = 8 * values.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    if frame is None:
        stored = values.astype(values.dtype.newbyteorder(">" if syntax == BIG_ENDIAN else "<"))
        content = stored.tobytes()
        dataset.PixelData = content + b"\0" * (len(content) % 2)
    else:
        dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB" if frame is not None or values.itemsize == 1 else "OW"
    for name, value in elements.items():
        if value is ABSENT:
            delattr(dataset, name)
        elif isinstance(value, tuple):
            dataset.add_new(name, *value)
        else:
            dataset.add_new(name, _vr_of(name, values), value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


ABSENT = object()


def _vr_of(keyword: str, values: npt.NDArray[Any]) -> str:
    """Return the value representation of an element; where it depends on the pixels, by their sign."""
    from pydicom.datadict import dictionary_VR

    kinds = dictionary_VR(keyword).split(" or ")
    return "SS" if "SS" in kinds and values.dtype.kind == "i" else "OW" if "OW" in kinds else kinds[0]


def table(values: list[int], *, first: int = 0, bits: int = 8) -> Any:
    """Return a sequence with one lookup table."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.LUTDescriptor = [len(values) % 2**16, first, bits]
    item.LUTData = values
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "US"
    return [item]


def stretched(values: npt.NDArray[Any], low: float, high: float) -> Grey:
    """Return values as grey, with `low` as black and `high` as white."""
    import numpy as np

    return np.asarray(np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255 + 0.5, dtype=np.uint8)


def windowed(values: npt.NDArray[Any], centre: float, width: float) -> Grey:
    """Return values through a linear window (DICOM PS3.3 C.11.2.1.2)."""
    return stretched(values, centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2)


def _depth_cases() -> Iterator[Case]:
    """Yield uncompressed and run-length encoded grey images of every depth, sign, polarity and window."""
    import numpy as np

    for syntax, allocated, signed in itertools.product((*UNCOMPRESSED, RLE), (8, 16), (False, True)):
        for stored, high_at in itertools.product(
            (8,) if allocated == 8 else (8, 10, 12, 14, 15, 16), ("right", "left")
        ):
            values = film(2**stored - 1)
            meant = values - 2 ** (stored - 1) if signed else values
            shift = allocated - stored if high_at == "left" else 0
            if high_at == "left" and not shift:
                continue
            kind = np.dtype(f"{'i' if signed else 'u'}{allocated // 8}")
            wide = (meant << shift).astype(kind)
            frame = _rle(wide) if syntax == RLE else None
            for photometric, window in itertools.product(("MONOCHROME1", "MONOCHROME2"), (None, (0.4, 0.5))):
                elements: dict[str, Any] = {
                    "BitsStored": stored,
                    "HighBit": stored - 1 + shift,
                    "PhotometricInterpretation": photometric,
                }
                grey = stretched(meant, int(meant.min()), int(meant.max()))
                if window:
                    centre = int(meant.min()) + int(window[0] * 2**stored)
                    width = int(window[1] * 2**stored)
                    elements |= {"WindowCenter": centre, "WindowWidth": width}
                    grey = windowed(meant, centre, width)
                yield Case(
                    name=f"{_short(syntax)}, {stored} of {allocated} bits at the {high_at}, "
                    f"{'signed' if signed else 'unsigned'}, {photometric}, {'window' if window else 'no window'}",
                    content=dicom(wide, syntax=syntax, frame=frame, **elements),
                    expected=255 - grey if photometric == "MONOCHROME1" else grey,
                )


def _short(syntax: str) -> str:
    from pydicom.uid import UID

    return UID(syntax).name.partition(" (")[0]


def _rle(values: npt.NDArray[Any]) -> bytes:
    """Return values run-length encoded, one segment per byte of a value, the upper one first (DICOM PS3.5 annex G)."""
    import struct

    planes = values.astype(values.dtype.newbyteorder(">")).view("u1").reshape(*values.shape[:2], -1)
    segments = []
    for index in range(planes.shape[-1]):
        packed = b"".join(encoders.packbits(row.tobytes()) for row in planes[..., index])
        segments.append(packed + b"\0" * (len(packed) % 2))
    starts = [64 + sum(len(one) for one in segments[:index]) for index in range(len(segments))]
    return struct.pack("<16I", len(segments), *starts, *[0] * (15 - len(starts))) + b"".join(segments)


def _shown_cases() -> Iterator[Case]:
    """Yield the transformations from stored to displayed values: rescaling, tables, windows, padding."""
    import numpy as np

    values = film(4095).astype(np.uint16)
    plain = stretched(values, 0, 4095)

    def case(name: str, expected: Grey | Reason, pixels: npt.NDArray[Any] = values, **elements: Any) -> Iterator[Case]:
        for syntax in UNCOMPRESSED:
            content = dicom(pixels, syntax=syntax, **{"BitsStored": 12, "HighBit": 11, **elements})
            # Values halfway between two greys may be rounded either way.
            yield Case(name=f"{name}, {_short(syntax)}", content=content, expected=expected, tolerance=1)

    yield from case("no window", plain)
    yield from case("MONOCHROME1", 255 - plain, PhotometricInterpretation="MONOCHROME1")
    window: dict[str, Any] = {"WindowCenter": 1000, "WindowWidth": 800}
    yield from case("window", windowed(values, 1000, 800), **window)
    yield from case("window LINEAR", windowed(values, 1000, 800), **window, VOILUTFunction="LINEAR")
    yield from case("window LINEAR_EXACT", stretched(values, 600, 1400), **window, VOILUTFunction="LINEAR_EXACT")
    sigmoid = np.asarray(255 / (1 + np.exp(-4 * (values.astype(float) - 1000) / 800)) + 0.5).astype(np.uint8)
    yield from case("window SIGMOID", sigmoid, **window, VOILUTFunction="SIGMOID")
    yield from case("window of an unknown function", Reason.UNSUPPORTED, **window, VOILUTFunction="GAUSS")
    yield from case("first of two windows", windowed(values, 1000, 800), WindowCenter=[1000, 50], WindowWidth=[800, 10])
    yield from case("window of no width", plain, WindowCenter=1000, WindowWidth=0)
    yield from case("window beside all values", Reason.ONE_GREY, WindowCenter=-9000, WindowWidth=10)
    for slope, intercept in itertools.product((1, 2.5, -1), (0, -1000)):
        rescaled = values * float(slope) + intercept
        yield from case(
            f"slope {slope}, intercept {intercept}",
            stretched(rescaled, rescaled.min(), rescaled.max()),
            RescaleSlope=slope,
            RescaleIntercept=intercept,
        )
        yield from case(
            f"slope {slope}, intercept {intercept}, window",
            windowed(rescaled, slope * 2000, 1500),
            RescaleSlope=slope,
            RescaleIntercept=intercept,
            WindowCenter=slope * 2000,
            WindowWidth=1500,
        )
    yield from case("slope alone", plain, RescaleSlope=2)
    yield from case("slope 0", Reason.ONE_GREY, RescaleSlope=0, RescaleIntercept=5)
    curve = [int(255 * (at / 4095) ** 2) for at in range(4096)]
    squared = np.array(curve, dtype=np.uint8)[values]
    yield from case("VOI table of 8 bits", squared, VOILUTSequence=table(curve))
    yield from case("VOI table before a window", squared, VOILUTSequence=table(curve), **window)
    deep = [value * 257 for value in curve]
    yield from case("VOI table of 16 bits", squared, VOILUTSequence=table(deep, bits=16))
    short = np.array(curve)[np.clip(values.astype(int) - 1000, 0, 999)]
    yield from case("VOI table from 1000 on", short.astype(np.uint8), VOILUTSequence=table(curve[:1000], first=1000))
    modality = np.array(curve)[values]
    yield from case(
        "modality table",
        stretched(modality, modality.min(), modality.max()),
        ModalityLUTSequence=table(curve),
    )
    for photometric, (name, elements, low, high) in itertools.product(
        ("MONOCHROME1", "MONOCHROME2"),
        (
            ("padding at 0", {"PixelPaddingValue": 0}, 0, 0),
            ("padding at the top", {"PixelPaddingValue": 4095}, 4095, 4095),
            ("padding 0 to 40", {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 40}, 0, 40),
            ("padding 4000 to 4095", {"PixelPaddingValue": 4095, "PixelPaddingRangeLimit": 4000}, 4000, 4095),
            ("padding in the middle", {"PixelPaddingValue": 2000, "PixelPaddingRangeLimit": 2100}, 2000, 2100),
        ),
    ):
        framed = np.clip(values, 50, 3900).astype(np.uint16)
        framed[:4], framed[-4:] = low, high
        padded = (framed >= low) & (framed <= high)
        for shown, more in (
            (stretched(framed, framed[~padded].min(), framed[~padded].max()), {}),
            (windowed(framed, 2000, 3000), {"WindowCenter": 2000, "WindowWidth": 3000}),
        ):
            grey = np.where(padded, 0, 255 - shown if photometric == "MONOCHROME1" else shown).astype(np.uint8)
            yield from case(
                f"{name}, {photometric}, {'window' if more else 'no window'}",
                grey,
                framed,
                PhotometricInterpretation=photometric,
                **elements,
                **more,
            )
    yield from case(
        "nothing but padding",
        Reason.ONE_GREY,
        np.full((HEIGHT, WIDTH), 7, dtype=np.uint16),
        PixelPaddingValue=7,
    )
    yield from case("one grey", Reason.ONE_GREY, np.full((HEIGHT, WIDTH), 7, dtype=np.uint16))
    negative = film(3000).astype(np.int16) - 1000
    negative[:4] = -2000
    for padding in (-2000, 2**16 - 2000):
        shown = stretched(negative, negative[4:].min(), negative[4:].max())
        shown[:4] = 0
        yield from case(
            f"negative padding stored as {padding}",
            shown,
            negative,
            BitsStored=16,
            HighBit=15,
            PixelPaddingValue=("SS" if padding < 0 else "US", padding),
        )


def _colour_cases() -> Iterator[Case]:
    """Yield colours, palettes and meaningless polarities."""
    import numpy as np

    colours = colours_of(255).astype(np.uint8)
    for syntax in (*UNCOMPRESSED, RLE):
        frame = _rle(colours) if syntax == RLE else None
        yield Case(
            name=f"RGB, {_short(syntax)}",
            content=dicom(colours, syntax=syntax, frame=frame),
            expected=luma(colours.astype(np.int64)),
        )
        planes = np.ascontiguousarray(np.moveaxis(colours, -1, 0))
        if frame is None:
            flat = dicom(
                colours,
                syntax=syntax,
                PlanarConfiguration=1,
                PixelData=("OB", planes.tobytes() + b"\0" * (planes.nbytes % 2)),
            )
            yield Case(name=f"RGB by planes, {_short(syntax)}", content=flat, expected=luma(colours.astype(np.int64)))
        grey = np.stack([film(255), np.full((HEIGHT, WIDTH), 128), np.full((HEIGHT, WIDTH), 128)], axis=-1)
        full = grey.astype(np.uint8)
        yield Case(
            name=f"YBR_FULL, {_short(syntax)}",
            content=dicom(
                full,
                syntax=syntax,
                frame=_rle(full) if syntax == RLE else None,
                PhotometricInterpretation="YBR_FULL",
            ),
            expected=film(255).astype(np.uint8),
            tolerance=1,
        )
    for stored in (8, 16):
        values = film(255).astype(np.uint8)
        ramp = [(at * 3) % 256 for at in range(256)]
        deep = [value * 257 if stored == 16 else value for value in ramp]
        parts: dict[str, Any] = {
            f"{colour}PaletteColorLookupTable{what}": value
            for colour in ("Red", "Green", "Blue")
            for what, value in (
                ("Descriptor", [256, 0, stored]),
                ("Data", np.array(deep, dtype=np.uint16 if stored == 16 else np.uint8).tobytes()),
            )
        }
        content = dicom(values, PhotometricInterpretation="PALETTE COLOR", **parts)
        yield Case(
            name=f"palette of {stored} bits",
            content=content,
            expected=np.array(ramp, dtype=np.uint8)[values],
        )
    yield Case(
        name="palette without a table",
        content=dicom(film(255).astype(np.uint8), PhotometricInterpretation="PALETTE COLOR"),
        expected=Reason.DAMAGED,
    )
    for kind in ("HSV", "ARGB", "CMYK", "YBR_PARTIAL_420", "MONOCHROME3"):
        yield Case(
            name=kind,
            content=dicom(film(255).astype(np.uint8), PhotometricInterpretation=kind),
            expected=Reason.UNSUPPORTED,
        )
    yield Case(
        name="MONOCHROME2 of three samples",
        content=dicom(colours, PhotometricInterpretation="MONOCHROME2"),
        expected=Reason.UNSUPPORTED,
    )
    refused = {
        "32 bits": dicom(film(255).astype(np.uint32)),
        "colour 16 bits": dicom(colours_of(65535).astype(np.uint16)),
    }
    for name, content in refused.items():
        yield Case(name=name, content=content, expected=Reason.UNSUPPORTED)
    for keyword in ("Rows", "PhotometricInterpretation", "BitsStored", "PixelRepresentation", "SamplesPerPixel"):
        for state in (None, ABSENT):
            changed: dict[str, Any] = {keyword: state}
            yield Case(
                name=f"{keyword} {'empty' if state is None else 'absent'}",
                content=dicom(film(255).astype(np.uint8), **changed),
                expected=Reason.DAMAGED,
            )
    yield Case(name="no pixels", content=dicom(film(255).astype(np.uint8), PixelData=ABSENT), expected=Reason.NO_IMAGE)
    yield Case(
        name="fewer pixels than declared",
        content=dicom(film(255).astype(np.uint8), PixelData=bytes(40)),
        expected=Reason.DAMAGED,
    )
    yield Case(
        name="several frames",
        content=dicom(film(255).astype(np.uint8), NumberOfFrames=2),
        expected=Reason.SEVERAL_IMAGES,
    )


def _compressed_cases() -> Iterator[Case]:
    """Yield every compressed transfer syntax: read, or refused by name if no decoder is available."""
    import numpy as np

    smooth, colours = smooth_film().astype(np.uint8), np.stack([smooth_film()] * 3, axis=-1).astype(np.uint8)
    for syntax, photometric in itertools.product((JPEG_BASELINE, JPEG_EXTENDED), ("MONOCHROME1", "MONOCHROME2")):
        yield Case(
            name=f"{_short(syntax)}, {photometric}",
            content=dicom(
                smooth,
                syntax=syntax,
                frame=by_pillow(smooth_film(), "JPEG", quality=100),
                PhotometricInterpretation=photometric,
            ),
            expected=255 - smooth if photometric == "MONOCHROME1" else smooth,
            tolerance=4,
        )
    yield Case(
        name="JPEG Baseline, colour",
        content=dicom(
            colours,
            syntax=JPEG_BASELINE,
            frame=by_pillow(np.stack([smooth_film()] * 3, axis=-1), "JPEG", quality=100, subsampling=0),
            PhotometricInterpretation="YBR_FULL_422",
        ),
        expected=smooth,
        tolerance=4,
    )
    yield Case(
        name="JPEG Extended of 12 bits",
        content=dicom(
            smooth_film(4095).astype(np.uint16),
            syntax=JPEG_EXTENDED,
            frame=jpeg_frame(0xC1, bits=12, width=WIDTH, height=HEIGHT),
            BitsStored=12,
            HighBit=11,
        ),
        expected=Reason.UNSUPPORTED,
    )
    for bits, signed, photometric in itertools.product((8, 12, 16), (False, True), ("MONOCHROME1", "MONOCHROME2")):
        values = film(2**bits - 1)
        meant = values - 2 ** (bits - 1) if signed else values
        kind = np.dtype(f"{'i' if signed else 'u'}{1 if bits == 8 else 2}")
        grey = stretched(meant, int(meant.min()), int(meant.max()))
        elements: dict[str, Any] = {"BitsStored": bits, "HighBit": bits - 1, "PhotometricInterpretation": photometric}
        expected = 255 - grey if photometric == "MONOCHROME1" else grey
        what = f"{bits} bits, {'signed' if signed else 'unsigned'}, {photometric}"
        yield Case(
            name=f"JPEG 2000 Lossless, {what}",
            content=_encoded(meant.astype(kind), JPEG_2000_LOSSLESS, **elements),
            expected=expected,
        )
        lossless = lossless_jpeg(values if not signed else meant % 2**bits, bits)
        for syntax in (JPEG_LOSSLESS, JPEG_LOSSLESS_1):
            content = dicom(meant.astype(kind), syntax=syntax, frame=lossless, **elements)
            yield Case(
                name=f"{_short(syntax)} {syntax[-2:]}, {what}", content=content, expected=expected, modules=("gdcm",)
            )
    for syntax in (JPEG_LS, JPEG_LS_NEAR):
        yield Case(
            name=_short(syntax),
            content=dicom(
                smooth,
                syntax=syntax,
                frame=jpeg_frame(0xF7, bits=8, width=WIDTH, height=HEIGHT),
            ),
            expected=Reason.DAMAGED,
            modules=("gdcm", "jpeg_ls"),
        )
    for name, syntax in NO_DECODER.items():
        yield Case(
            name=name,
            content=dicom(smooth, syntax=syntax, frame=by_pillow(smooth_film(), "JPEG")),
            expected=Reason.UNSUPPORTED,
        )
    known = dicom(smooth, syntax=NO_DECODER["MPEG-4"], frame=by_pillow(smooth_film(), "JPEG"))
    for name, last in (("JPEG XL", b"110"), ("an unknown one", b"999")):
        yield Case(
            name=name,
            content=known.replace(NO_DECODER["MPEG-4"].encode(), b"1.2.840.10008.1.2.4." + last),
            expected=Reason.UNSUPPORTED,
        )
    yield Case(name="deflated", content=dicom(smooth, syntax=DEFLATED), expected=Reason.UNSUPPORTED)
    for syntax in (JPEG_BASELINE, JPEG_2000_LOSSLESS):
        yield Case(
            name=f"{_short(syntax)}, no such frame",
            content=dicom(smooth, syntax=syntax, frame=b"no JPEG at all.."),
            expected=Reason.DAMAGED,
        )
        yield Case(
            name=f"{_short(syntax)}, frame of another size",
            content=dicom(smooth[:-1], syntax=syntax, frame=by_pillow(smooth_film(), "JPEG")),
            expected=Reason.DAMAGED,
        )


def _encoded(values: npt.NDArray[Any], syntax: str, **elements: Any) -> bytes:
    """Return a DICOM file compressed by pydicom's own encoders."""
    from pydicom import dcmread

    dataset = dcmread(io.BytesIO(dicom(values, **elements)))
    dataset.compress(syntax, generate_instance_uid=False)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


DICOM: dict[str, Callable[[], Iterator[Case]]] = {
    "DICOM, depths": _depth_cases,
    "DICOM, shown values": _shown_cases,
    "DICOM, colours and headers": _colour_cases,
    "DICOM, compressed": _compressed_cases,
}
