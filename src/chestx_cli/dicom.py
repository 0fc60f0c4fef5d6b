"""DICOM files as grey images: modality and VOI transformation, MONOCHROME1 and the patient's identifier."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from pydicom import Dataset

SUFFIXES = frozenset({".dcm", ".dicom"})


@dataclass(frozen=True, kw_only=True)
class DicomImage:
    """A decoded file: grey pixels [H, W] with air dark, how they were stored, and PatientID where it has one."""

    pixels: npt.NDArray[np.uint8]
    mode: str
    patient: str | None


def read_dicom(data: bytes, *, max_pixels: int) -> DicomImage:
    """Return the one image of a DICOM file in 8 bits; raises ValueError with the reason where it has none.

    Stored values pass the modality and then the VOI transformation (DICOM PS3.3 C.11.1 and C.11.2) and are scaled from
    the output range of the latter. Without a VOI transformation the standard leaves the display open: the smallest to
    the largest value, padding left out, are shown. MONOCHROME1 is inverted.
    """
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        dataset = dcmread(io.BytesIO(data))
        height, width = int(dataset.Rows), int(dataset.Columns)
        if width * height > max_pixels:
            raise ValueError(f"{width}×{height} pixels, more than {max_pixels:,}")
        if (frames := int(dataset.get("NumberOfFrames") or 1)) > 1:
            raise ValueError(f"{frames} frames, where one image is expected")
        pixels = _grey(dataset)
    except InvalidDicomError as error:
        raise ValueError("not a DICOM file") from error
    except AttributeError as error:
        raise ValueError(f"a DICOM file without an image: {error}") from error
    except (KeyError, NotImplementedError, RuntimeError, TypeError, EOFError, struct.error) as error:
        raise ValueError(f"damaged: {error}") from error
    mode = f"{dataset.PhotometricInterpretation} {dataset.BitsStored} bit"
    return DicomImage(pixels=pixels, mode=mode, patient=str(dataset.get("PatientID") or "").strip() or None)


def _grey(dataset: Dataset) -> npt.NDArray[np.uint8]:
    import numpy as np
    from PIL import Image
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    stored = dataset.pixel_array
    if stored.ndim == 3:
        return np.asarray(Image.fromarray(stored.astype(np.uint8)).convert("L"))
    rescaled = apply_modality_lut(stored, dataset)
    values = np.asarray(apply_voi_lut(rescaled, dataset), dtype=np.float64)
    if "VOILUTSequence" in dataset:
        low, high = 0.0, 2.0 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
    elif "WindowCenter" in dataset:
        # The window maps everything below and above it to the two ends of the output range.
        low, high = np.asarray(apply_voi_lut(np.array([-1e12, 1e12]), dataset), dtype=np.float64)
    else:
        padding = dataset.get("PixelPaddingValue")
        shown = values if padding is None or (stored == padding).all() else values[stored != padding]
        low, high = float(shown.min()), float(shown.max())
    scaled = np.clip((values - low) / max(high - low, 1e-12), 0, 1) * 255
    grey = (scaled + 0.5).astype(np.uint8)
    inverted: npt.NDArray[np.uint8] = 255 - grey
    return inverted if dataset.PhotometricInterpretation == "MONOCHROME1" else grey
