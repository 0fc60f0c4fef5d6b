"""How often films, and how often other images, get the warning that they are unlike the training images.

    python -m tools.benchmarks.unlike STUDY --photos FOLDER --variant static-int8 --features baseline

Every film of the study's split is held out once: the rule is fitted on four fifths of the patients and judges the last
fifth, as it is and altered. All other images are preprocessed like the study's own, grey and of their size, so that
neither colour nor shape identifies them; in the column "as files" `predict` judges the original files with the study's
statistics. Photographs come from scikit-learn and matplotlib and, with --photos, from a folder, such as that of
scikit-image's data; each is taken whole and as crops. CT, MR and other DICOM images are those of pydicom's package.
With --features the distance of a torch variant's penultimate features is measured beside the rule. The study is copied.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

import chestx_cli
from chestx_cli.core.progress import SilentReporter
from chestx_cli.data.images.decoding import at_network_size, decode_grey
from chestx_cli.data.images.formats.refusals import UnreadableImageError
from chestx_cli.data.likeness.rule import STANDARD_DEVIATIONS, fit, greys_of, layout_of
from chestx_cli.data.scanning import thumbnails
from chestx_cli.data.streams import open_images
from chestx_cli.records.preprocessing import SQUASH
from chestx_cli.store.directory import Study
from tools.harness.machine import describe

Pixels = npt.NDArray[np.uint8]

FOLDS, VALIDATION, CROPS = 5, 0.15, 12
# Smaller images in a package are icons and test patterns, not photographs.
LEAST_PX = 100
# Files in a folder of photographs that are drawings, text or test patterns.
NO_PHOTOGRAPHS = {"cell", "chessboard_GRAY", "chessboard_RGB", "clock_motion", "color", "horse", "ihc", "logo"}
NO_PHOTOGRAPHS |= {"microaneurysms", "page", "phantom", "retina", "text"}
FILM, BATCH = "film, held out", 16


def photographs(folder: Path | None) -> list[tuple[str, Image.Image]]:
    """Return photographs by name."""
    from matplotlib.cbook import get_sample_data
    from sklearn.datasets import load_sample_images

    found = [(str(index), Image.fromarray(one)) for index, one in enumerate(load_sample_images().images)]
    found.append(("grace_hopper", Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False))))
    found += [
        (path.stem, Image.open(path))
        for path in (sorted(folder.iterdir()) if folder else ())
        if path.suffix in {".png", ".jpg"} and path.stem not in NO_PHOTOGRAPHS
    ]
    return [(name, image.convert("RGB")) for name, image in found if min(image.size) >= LEAST_PX]


def crops_of(image: Image.Image, rng: np.random.Generator) -> list[Image.Image]:
    """Return the whole image and random crops with at least a third of its width and height."""
    width, height = image.size
    crops = [image]
    for share in rng.uniform(0.35, 1, CROPS - 1):
        across, down = int(width * share), int(height * share)
        left, top = int(rng.integers(0, width - across + 1)), int(rng.integers(0, height - down + 1))
        crops.append(image.crop((left, top, left + across, top + down)))
    return crops


def dicom_files() -> dict[str, list[Path]]:
    """Return pydicom's own test images by kind, each picture once."""
    import pydicom

    kinds: dict[str, list[Path]] = {}
    seen: set[str] = set()
    for path in sorted((Path(pydicom.__file__).parent / "data" / "test_files").rglob("*")):
        try:
            modality = str(pydicom.dcmread(path, stop_before_pixels=True).get("Modality", ""))
            grey, _ = decode_grey(path)
        except (UnreadableImageError, pydicom.errors.InvalidDicomError, OSError, AttributeError):
            continue
        digest = hashlib.sha256(grey.resize((64, 64)).tobytes()).hexdigest()
        if digest not in seen:
            seen.add(digest)
            kind = {"CT": "CT slice", "MR": "MR slice"}.get(modality, "other DICOM (ultrasound, test patterns)")
            kinds.setdefault(kind, []).append(path)
    return kinds


def altered(films: Pixels) -> dict[str, Pixels]:
    """Return films [n, H, W] turned, mirrored and inverted."""
    return {
        FILM: films,
        "inverted film": 255 - films,
        "film turned by 90°": np.rot90(films, 1, (1, 2)),
        "film turned by 270°": np.rot90(films, 3, (1, 2)),
        "film turned by 180°": np.rot90(films, 2, (1, 2)),
        "mirrored film": films[:, :, ::-1],
    }


def write_others(folder: Path, photos: Path | None, side_px: int) -> dict[str, list[Path]]:
    """Write images other than films as files; return their paths and those of pydicom's images by kind."""
    rng = np.random.default_rng(0)
    images: dict[str, list[Image.Image]] = {"photograph": []}
    for _, photo in photographs(photos):
        images["photograph"] += crops_of(photo, rng)
    greys = [rng.integers(0, 256, (side_px, side_px)) for _ in range(10)]
    greys += [rng.normal(120, 30, (side_px, side_px)).clip(0, 255) for _ in range(10)]
    images["noise"] = [Image.fromarray(grey.astype(np.uint8)) for grey in greys]
    blank = [np.full((side_px, side_px), level) + rng.integers(0, 2, (side_px, side_px)) for level in (0, 60, 120, 250)]
    images["nearly blank"] = [Image.fromarray(grey.astype(np.uint8)) for grey in blank]
    files: dict[str, list[Path]] = dicom_files()
    for kind, own in images.items():
        files[kind] = [folder / f"{kind}-{number}.png" for number in range(len(own))]
        for path, image in zip(files[kind], own, strict=True):
            image.save(path)
    return files


def unlike(fitted: object, pixels: Pixels) -> npt.NDArray[np.bool_]:
    """Return which images [n, H, W] exceed a limit of the fitted statistics."""
    thumbs = thumbnails(np.ascontiguousarray(pixels), SQUASH)
    by_layout = fitted.layouts.unexplained(layout_of(thumbs)) > fitted.layout_limit  # type: ignore[attr-defined]
    by_greys = fitted.greys.distance(greys_of(thumbs)) > fitted.greys_limit  # type: ignore[attr-defined]
    found: npt.NDArray[np.bool_] = by_layout | by_greys
    return found


def over_folds(
    films: Pixels, groups: npt.NDArray[np.str_], others: dict[str, Pixels]
) -> dict[str, npt.NDArray[np.float64]]:
    """Return for each image of a kind the share of the folds in which it is found unlike; films have one fold each."""
    rng = np.random.default_rng(0)
    _, patient = np.unique(groups, return_inverse=True)
    fold = rng.permutation(patient.max() + 1)[patient] % FOLDS
    in_validation = (rng.random(patient.max() + 1) < VALIDATION)[patient]
    found: dict[str, list[npt.NDArray[np.bool_]]] = {}
    for number in range(FOLDS):
        train, val = (fold != number) & ~in_validation, (fold != number) & in_validation
        fitted = fit(thumbnails(films[train], SQUASH), groups[train], thumbnails(films[val], SQUASH))
        for kind, pixels in altered(films[fold == number]).items():
            found.setdefault(kind, []).append(unlike(fitted, pixels))
        for kind, pixels in others.items():
            found.setdefault(kind, []).append(unlike(fitted, pixels))
    return {
        kind: np.concatenate(own).astype(float) if kind not in others else np.mean(own, axis=0)
        for kind, own in found.items()
    }


def by_features(study: Study, variant: str, sets: dict[str, Pixels], films: dict[str, Pixels]) -> dict[str, float]:
    """Return the share of each kind beyond the limit of the distance of penultimate features.

    It is the Mahalanobis distance from the training images with the covariance of Ledoit and Wolf (2004); the limit is
    set on the validation images' logarithms as the rule sets its own.
    """
    import torch
    from sklearn.covariance import LedoitWolf

    from chestx_cli.networks.backbones import head_of
    from chestx_cli.networks.weights.serialization import load_network

    record = study.read_variant(variant)
    network = load_network(study, record)
    kept: list[torch.Tensor] = []
    network.get_submodule(head_of(network)).register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))

    def features(pixels: Pixels) -> npt.NDArray[np.float64]:
        kept.clear()
        with torch.inference_mode():
            for start in range(0, len(pixels), BATCH):
                network(torch.from_numpy(record.preprocessing.normalised(pixels[start : start + BATCH])))
        stacked: npt.NDArray[np.float64] = torch.cat(kept).double().numpy()
        return stacked

    spread = LedoitWolf().fit(features(films["train"]))

    def distance(pixels: Pixels) -> npt.NDArray[np.float64]:
        return np.log(np.asarray(spread.mahalanobis(features(pixels)), dtype=np.float64))

    of_val = distance(films["val"])
    limit = of_val.mean() + STANDARD_DEVIATIONS * of_val.std()
    return {kind: float((distance(np.ascontiguousarray(pixels)) > limit).mean()) for kind, pixels in sets.items()}


def as_files(study: Path, variant: str, files: dict[str, list[Path]]) -> dict[str, tuple[int, int]]:
    """Return, for each kind, how many files `predict` finds unlike the training images, and how many it reads."""
    model = chestx_cli.open_study(study).variant(variant)
    shares = {}
    for kind, own in files.items():
        rows = [row for row in model.predict([str(path) for path in own]).rows if row.problem is None]
        shares[kind] = (sum(row.unlike_training is not None for row in rows), len(rows))
    return shares


def test_films(study: Study, folder: Path, films: Pixels, rows: Sequence[int]) -> dict[str, list[Path]]:
    """Return the files of the test films, and those of their negatives, which are written to `folder`."""
    split = study.read_split()
    own = [split.root / str(split.paths[row]) for row in rows]
    negatives = [folder / f"negative-{row}.png" for row in rows]
    for path, row in zip(negatives, rows, strict=True):
        Image.fromarray(255 - films[row]).save(path)
    return {FILM: own, "inverted film": negatives}


def main() -> None:
    """Measure and print the tables."""
    warnings.filterwarnings("ignore", module="pydicom")
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("study", type=Path)
    options.add_argument("--variant", default="baseline")
    options.add_argument("--features", metavar="VARIANT")
    options.add_argument("--photos", type=Path)
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="chestx-unlike-") as temporary:
        work = Path(temporary)
        shutil.copytree(arguments.study, work / "study")
        study = Study(work / "study")
        split, record = study.read_split(), study.read_variant(arguments.variant)
        films = np.asarray(open_images(study, split, record.preprocessing, SilentReporter())[np.arange(len(split.ids))])
        files = write_others(work, arguments.photos, record.preprocessing.image_size_px)
        others = {
            kind: np.stack([at_network_size(decode_grey(path)[0], record.preprocessing) for path in own])
            for kind, own in files.items()
        }
        share = over_folds(films, split.groups.astype(str), others)
        test = split.indices("test")
        real = as_files(work / "study", arguments.variant, {**test_films(study, work, films, test.tolist()), **files})
        sets = {**altered(films[test]), **others}
        parts = {part: films[split.indices(part)] for part in ("train", "val")}
        features = by_features(study, arguments.features, sets, parts) if arguments.features else {}
    _print(share, real, features, len(photographs(arguments.photos)))


def _print(
    share: dict[str, npt.NDArray[np.float64]],
    real: dict[str, tuple[int, int]],
    features: dict[str, float],
    n_photos: int,
) -> None:
    print(
        "| images | number | found unlike, as grey squares | as files, by `predict` | by penultimate features alone |"
    )
    print("|---|---:|---:|---:|---:|")
    for kind, own in share.items():
        files = f"{real[kind][0]:,} of {real[kind][1]:,}" if kind in real else "–"
        distance = f"{features[kind]:.1%}" if kind in features else "–"
        print(f"| {kind} | {len(own):,} | {own.mean():.1%} | {files} | {distance} |")
    machine = describe()
    print(f"\nPhotographs: {n_photos} pictures, each whole and in {CROPS - 1} random crops.")
    print(f"Machine: {machine['processor']}, {machine['threads']} processors ({machine['instructions']}).")
    print(f"Measured with `{shlex.join(['python', '-m', 'tools.benchmarks.unlike', *sys.argv[1:]])}`.")


if __name__ == "__main__":
    main()
