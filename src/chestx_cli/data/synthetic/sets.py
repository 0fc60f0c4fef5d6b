"""Synthetic sets: images with two labels in folders, so that a study can be tried without patient data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.core.errors import ChestxError
from chestx_cli.data.synthetic.radiographs import draw_anatomy, draw_opacity, draw_radiograph

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np

MIN_IMAGES = 40
MIN_SIZE_PX = 64
MAX_IMAGES_PER_PATIENT = 4
NOTICE_FILE = "SYNTHETIC.txt"


@dataclass(frozen=True, kw_only=True)
class SyntheticSet:
    """What was written: the number of images, of patients, and of images in each class."""

    images: int
    patients: int
    normal: int
    pneumonia: int


def write_synthetic_set(
    out: Path,
    *,
    images: int,
    seed: int,
    size_px: int = 256,
    least_severity: float = 0.0,
    on_image: Callable[[], None] = lambda: None,
) -> SyntheticSet:
    """Write a synthetic set as out/NORMAL/*.png, out/PNEUMONIA/*.png and out/SYNTHETIC.txt.

    Names are `NNNNNNNN_MMM.png` (patient, image); a patient has one label and one to four images.  The same
    arguments write the same bytes.  `on_image` is called after each image.  Raises ChestxError for fewer than
    40 images, for images under 64 px, and where a class folder already holds images.
    """
    import numpy as np
    from PIL import Image

    _check_request(out, images, size_px)
    rng = np.random.default_rng(seed)
    counts = {"NORMAL": images - images // 2, "PNEUMONIA": images // 2}
    groups = [(label, size) for label, total in counts.items() for size in _patient_sizes(total, rng)]
    # Numbers with gaps, dealt in random order: neither the number nor its rank predicts the class.
    numbers = rng.permutation(np.cumsum(rng.integers(1, 40, size=len(groups))))
    for label in counts:
        (out / label).mkdir(parents=True, exist_ok=True)
    for (label, size), number in zip(groups, numbers, strict=True):
        anatomy = draw_anatomy(rng)
        # Drawn for everybody and dropped for the healthy, so that both classes use the generator alike.
        opacity = draw_opacity(rng, least_severity=least_severity)
        for index in range(size):
            film = draw_radiograph(anatomy, opacity if label == "PNEUMONIA" else None, rng, size_px=size_px)
            Image.fromarray(film).save(out / label / f"{number:08d}_{index:03d}.png", compress_level=3)
            on_image()
    (out / NOTICE_FILE).write_text(notice(images, seed, size_px, least_severity), encoding="utf-8", newline="\n")
    return SyntheticSet(images=images, patients=len(groups), normal=counts["NORMAL"], pneumonia=counts["PNEUMONIA"])


def _check_request(out: Path, images: int, size_px: int) -> None:
    if images < MIN_IMAGES:
        raise ChestxError(
            f"{images} synthetic images are too few to train, validate and test on",
            f"use at least {MIN_IMAGES} images",
        )
    if size_px < MIN_SIZE_PX:
        raise ChestxError(
            f"synthetic images of {size_px} px are too small to show a chest", f"use at least {MIN_SIZE_PX} px"
        )
    # Left-over images would mix two sets whose patient numbers overlap.
    if any(path for label in ("NORMAL", "PNEUMONIA") for path in (out / label).glob("*.png")):
        raise ChestxError(f"{out} already holds images", "choose an empty folder or remove the old images")


def _patient_sizes(images: int, rng: np.random.Generator) -> list[int]:
    """Split one class's images over patients, one to four images each."""
    sizes: list[int] = []
    while (left := images - sum(sizes)) > 0:
        sizes.append(min(left, int(rng.integers(1, MAX_IMAGES_PER_PATIENT + 1))))
    return sizes


def notice(images: int, seed: int, size_px: int = 256, least_severity: float = 0.0) -> str:
    """Return the notice stored beside the images, which also identifies the set."""
    return (
        "These images are SYNTHETIC. They were drawn by a program and show no real patient.\n"
        "They are for trying the software; results on them show nothing about real radiographs.\n"
        f"images: {images}\nseed: {seed}\nsize: {size_px} px\nleast severity: {least_severity:g}\n"
    )
