"""Checks that the pixels of a DICOM file can be decoded: its transfer syntax, and the size of its frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chestx_cli.data.images.formats.dicom_tags import text, whole
from chestx_cli.data.images.formats.jpegs import SCAN, JpegHeader, jpeg_header
from chestx_cli.data.images.formats.refusals import (
    MAX_SCANNED_PIXELS,
    Reason,
    UnreadableImageError,
    damaged_where_it_fails,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from pydicom.dataset import FileDataset
    from pydicom.uid import UID

# Run-length data is decoded in Python, which is slow for many short runs.
_MAX_RLE_BYTES = 16 * 2**20
_MAX_UID_CHARACTERS = 64
_CUT = "its pixel data are cut or broken"


def require_decodable(dataset: FileDataset) -> None:
    """Raise UnreadableImageError if no installed package decodes a file, or if decoding would cost too much.

    pydicom decides: it finds the decoders of other packages. A file without a transfer syntax is uncompressed, in the
    encoding that pydicom detected.
    """
    from pydicom.uid import RLELossless

    syntax = _transfer_syntax(dataset)
    if not syntax.is_transfer_syntax:
        # A private transfer syntax, or one newer than pydicom.
        raise _unsupported(syntax, "save it without compression")
    if not syntax.is_encapsulated:
        return
    _require_decoder(syntax)
    if syntax == RLELossless:
        if len(dataset.PixelData) > _MAX_RLE_BYTES:
            reason = f"run-length coded pixels of more than {_MAX_RLE_BYTES:,} bytes; save it without compression"
            raise UnreadableImageError(Reason.TOO_LARGE, reason)
        return
    _require_frame(dataset)


def stored_values(dataset: FileDataset) -> npt.NDArray[np.generic]:
    """Return the stored values of a file's image, [H, W] or colours [H, W, 3]; raises as above.

    Colours are RGB. Bits outside the stored value are not removed.
    """
    from pydicom.pixels.utils import pixel_array

    syntax = dataset.file_meta.TransferSyntaxUID
    # The position of the value is given by HighBit, which pydicom ignores.
    manner: dict[str, Any] = {"correct_unused_bits": False} if keeps_all_bits(syntax) else {}
    try:
        with damaged_where_it_fails(_CUT if not syntax.is_encapsulated else f"its {syntax.name} frame is broken"):
            decoded: npt.NDArray[np.generic] = pixel_array(dataset, index=0, allow_excess_frames=False, **manner)
    except UnreadableImageError as error:
        if syntax.is_encapsulated and (header := _header_of_frame(dataset)) is not None and not header.is_2000:
            _require_known_depth(syntax, header, error)
        raise
    return decoded


def keeps_all_bits(syntax: UID) -> bool:
    """Return whether a file stores values with all allocated bits; JPEG stores only the used ones."""
    from pydicom.uid import RLELossless

    return not syntax.is_encapsulated or syntax == RLELossless


def _transfer_syntax(dataset: FileDataset) -> UID:
    from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if (named := text(dataset.file_meta, "TransferSyntaxUID")) is not None:
        return UID(named)
    is_implicit, is_little = dataset.original_encoding
    explicit = ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else explicit
    return dataset.file_meta.TransferSyntaxUID


def _require_decoder(syntax: UID) -> None:
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes

    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise _unsupported(syntax, "save it without compression") from error
    if decoder.is_available:
        return
    # Of the packages that pydicom names, those with a licence as permissive as that of chestx.
    if syntax in (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes):
        raise _unsupported(syntax, "install python-gdcm, or save it without compression")
    if syntax in JPEG2000TransferSyntaxes:
        raise _unsupported(syntax, "install pylibjpeg and pylibjpeg-openjpeg, or save it without compression")
    raise _unsupported(syntax, "save it without compression")


def _unsupported(syntax: UID, remedy: str) -> UnreadableImageError:
    uid = str(syntax)[:_MAX_UID_CHARACTERS]
    named = f"{syntax.name} ({uid})" if syntax.name != str(syntax) else uid
    return UnreadableImageError(Reason.UNSUPPORTED, f"DICOM compressed as {named}; {remedy}")


def _require_known_depth(syntax: UID, header: JpegHeader, error: UnreadableImageError) -> None:
    """Raise UnreadableImageError if the installed decoders read a transfer syntax, but not at this depth."""
    from pydicom.uid import JPEGExtended12Bit

    if syntax == JPEGExtended12Bit and header.bits != 8:
        raise _unsupported(syntax, f"of {header.bits} bits; save it without compression") from error


def _frame(dataset: FileDataset) -> bytes:
    from pydicom.encaps import generate_frames

    with damaged_where_it_fails(_CUT):
        return next(generate_frames(dataset.PixelData, number_of_frames=1))


def _header_of_frame(dataset: FileDataset) -> JpegHeader | None:
    return jpeg_header(_frame(dataset))


def _require_frame(dataset: FileDataset) -> None:
    """Raise UnreadableImageError if a frame is no JPEG, or its size differs from that in the header."""
    frame = _frame(dataset)
    header = jpeg_header(frame)
    if header is None:
        raise UnreadableImageError(Reason.DAMAGED, "its frame is not a JPEG, or its header is broken")
    width, height, samples = (whole(dataset, name) for name in ("Columns", "Rows", "SamplesPerPixel"))
    if (header.width, header.height) != (width, height):
        reason = f"its frame has {header.width}×{header.height} pixels, the file declares {width}×{height}"
        raise UnreadableImageError(Reason.DAMAGED, reason)
    if header.components != samples:
        reason = f"its frame has {header.components} components, the file declares {samples}"
        raise UnreadableImageError(Reason.DAMAGED, reason)
    if not header.is_2000 and frame.count(SCAN) * header.width * header.height > MAX_SCANNED_PIXELS:
        raise UnreadableImageError(Reason.TOO_LARGE, "too many JPEG scans; save it again")
