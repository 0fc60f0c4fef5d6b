"""The pixel cache: every image decoded once per study, kept as 8-bit grey at network size, memory-mapped."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from chestx_cli.files import make_folder, storage_error
from chestx_cli.images import Preprocessing, load_pixels
from chestx_cli.stage import available_threads

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from chestx_cli.stage import Reporter
    from chestx_cli.study import Split, Study

CHUNK = 256


def open_pixels(study: Study, split: Split, preprocessing: Preprocessing, reporter: Reporter) -> npt.NDArray[np.uint8]:
    """Return the pixels of all images of a split, [N, H, W], in manifest order, read from the disk when touched.

    The cache is keyed by the images' hashes and the preprocessing, and made where it is missing or of the wrong size.
    Raises DataError or IntegrityError for an image that cannot be read or has changed, StorageError.
    """
    import numpy as np

    side = preprocessing.image_size_px
    shape = (len(split.ids), side, side)
    path = study.cache / f"pixels-{side}-{_key(split, preprocessing)}.npy"
    if path.exists():
        try:
            pixels: npt.NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):
            pixels = np.empty(0, dtype=np.uint8)
        if pixels.shape == shape and pixels.dtype == np.uint8:
            return pixels
        reporter.warn(f"{path} is damaged; it is made again")
    _build(path, split, preprocessing, shape, reporter)
    built: npt.NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    return built


def _key(split: Split, preprocessing: Preprocessing) -> str:
    digest = hashlib.sha256(f"{preprocessing}\n".encode())
    digest.update("\n".join(split.image_sha256.tolist()).encode())
    return digest.hexdigest()[:16]


def _build(path: Path, split: Split, preprocessing: Preprocessing, shape: tuple[int, ...], reporter: Reporter) -> None:
    """Decode all images, a bounded number at a time, into a hidden file that then takes its name."""
    import numpy as np

    make_folder(path.parent)
    hidden = path.with_name(f".{path.name}.{os.getpid()}")

    def load(row: int) -> npt.NDArray[np.uint8]:
        return load_pixels(split.root / str(split.paths[row]), preprocessing, sha256=str(split.image_sha256[row]))

    # Written in order, not through a map: a full disk is then an error and not a crash.
    try:
        with (
            hidden.open("wb") as file,
            reporter.progress("Decoding images", shape[0]) as advance,
            ThreadPoolExecutor(available_threads()) as pool,
        ):
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, shape[0], CHUNK):
                for image in pool.map(load, range(start, min(start + CHUNK, shape[0]))):
                    file.write(image.tobytes())
                    advance()
            file.flush()
            os.fsync(file.fileno())
        hidden.replace(path)
    except OSError as error:
        raise storage_error(error, path) from error
    finally:
        hidden.unlink(missing_ok=True)
