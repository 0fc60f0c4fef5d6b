"""Writes large images made from smaller ones: 1024×1024, half PNG, half JPEG, all different."""

from __future__ import annotations

import argparse
from multiprocessing import Pool
from pathlib import Path

SIDE_PX = 1024
# Larger than every patient number of the public sets, so that no patient is taken for a training patient.
FIRST_PATIENT = 100_000


def write_one(task: tuple[int, Path, Path]) -> None:
    """Write one image: a random crop of its source, enlarged, with detector-like noise."""
    import numpy as np
    from PIL import Image

    index, source, folder = task
    rng = np.random.default_rng(index)
    with Image.open(source) as opened:
        grey = opened.convert("L")
    width, height = grey.size
    left, top, right, bottom = rng.uniform(0, 0.1, 4)
    box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
    large = np.asarray(grey.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC, box=box), dtype=np.int16)
    noisy = np.clip(large + rng.integers(-1, 2, large.shape, dtype=np.int16), 0, 255).astype(np.uint8)
    image = Image.fromarray(noisy)
    patient = FIRST_PATIENT + index
    stem = f"person{patient}_virus_{index}" if folder.name == "PNEUMONIA" else f"IM-{patient}-{index:05d}"
    if index % 2:
        image.save(folder / f"{stem}.jpeg", quality=90)
    else:
        image.save(folder / f"{stem}.png", compress_level=3)


def main() -> None:
    """Write the images, using all processors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, required=True)
    options = parser.parse_args()
    classes = sorted(folder for folder in options.data.iterdir() if folder.is_dir())
    sources = {folder.name: sorted(path for path in folder.iterdir() if path.is_file()) for folder in classes}
    names = list(sources)
    tasks = []
    for index in range(options.images):
        # Two consecutive images have one class, so that both classes have both file types.
        name = names[index // 2 % len(names)]
        folder = options.out / name
        folder.mkdir(parents=True, exist_ok=True)
        tasks.append((index, sources[name][index % len(sources[name])], folder))
    with Pool() as pool:
        for _ in pool.imap_unordered(write_one, tasks, chunksize=16):
            pass


if __name__ == "__main__":
    main()
