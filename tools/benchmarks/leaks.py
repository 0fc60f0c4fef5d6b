"""Which planted leaks `chestx split` finds, and how many distinct patients it merges by mistake.

    python -m tools.benchmarks.leaks --out leaks.json --figure leaks.png

1,000 synthetic patients with one image each; for each kind of leak, 100 of them get a copy under another patient's name
(except the second image of the same patient). The command splits the folder; its manifest shows which images it kept
together. The curve shows the effect of other correlation thresholds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageOps

import chestx_cli
from chestx_cli.core.machine import available_threads
from chestx_cli.data import duplicates
from chestx_cli.data.images.decoding import at_network_size
from chestx_cli.data.scanning import thumbnail, thumbnails
from chestx_cli.data.splitting import joined_groups
from chestx_cli.data.synthetic.radiographs import draw_anatomy, draw_opacity, draw_radiograph
from chestx_cli.records.preprocessing import SQUASH, Preprocessing

PATIENTS, PLANTED = 1000, 100
SIDE_PX = 256
PATIENT = r"/(\d{8})_\d{3}\."
SAME_PATIENT, SAME_PIXELS, FLIPPED = "same patient", "same pixels", "flipped"
THRESHOLDS = np.round(np.arange(0.5, 1.0001, 0.01), 2)
NETWORK_SIDES_PX = (32, 64, 112, 224)


def film(patient: int, number: int) -> Image.Image:
    """Return one image of a synthetic patient; even-numbered patients are positive."""
    rng = np.random.default_rng(patient)
    anatomy, opacity = draw_anatomy(rng), draw_opacity(rng)
    drawn = draw_radiograph(
        anatomy, opacity if patient % 2 == 0 else None, np.random.default_rng((patient, number)), size_px=SIDE_PX
    )
    return Image.fromarray(drawn)


def resized(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return an image at 0.5 to 2 times its size."""
    side_px = round(SIDE_PX * float(rng.uniform(0.5, 2)))
    return image.resize((side_px, side_px), Image.Resampling.BICUBIC)


def brightened(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return an image 10 to 40 grey levels brighter or darker, clipped at black and white."""
    shift = int(rng.integers(10, 41)) * int(rng.choice((-1, 1)))
    return Image.fromarray(np.clip(np.asarray(image).astype(int) + shift, 0, 255).astype(np.uint8))


def unchanged(image: Image.Image, rng: np.random.Generator) -> Image.Image:  # noqa: ARG001 - as the other leaks
    """Return the image itself, to be stored in another format."""
    return image


def flipped(image: Image.Image, rng: np.random.Generator) -> Image.Image:  # noqa: ARG001 - as the other leaks
    """Return the mirror image."""
    return ImageOps.mirror(image)


CHANGES: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    SAME_PIXELS: unchanged,
    "recompressed": unchanged,
    "resized": resized,
    "brightness shifted": brightened,
    FLIPPED: flipped,
}
KINDS = (SAME_PATIENT, *CHANGES)
# All but a mirror image, whose pixels are those of a different radiograph.
MUST_BE_FOUND = tuple(kind for kind in KINDS if kind != FLIPPED)


def write_patient(folder: str, patient: int) -> list[tuple[str, str, int]]:
    """Write a patient's image and its planted leak, if any; return (path, kind, patient) of each file."""
    label = ("PNEUMONIA", "NORMAL")[patient % 2]
    first = film(patient, 0)
    path = f"{label}/{patient:08d}_000.png"
    first.save(Path(folder) / path)
    written = [(path, "film", patient)]
    if patient >= PLANTED * len(KINDS):
        return written
    kind = KINDS[patient // PLANTED]
    rng = np.random.default_rng((patient, 99))
    other = f"{label}/{patient + 10 * PATIENTS:08d}_000"
    if kind == SAME_PATIENT:
        path = f"{label}/{patient:08d}_001.png"
        film(patient, 1).save(Path(folder) / path)
    elif kind == "recompressed":
        path = f"{other}.jpeg"
        first.save(Path(folder) / path, quality=int(rng.integers(30, 91)))
    else:
        path = f"{other}.png"
        CHANGES[kind](first, rng).save(Path(folder) / path, compress_level=1)
    return [*written, (path, kind, patient)]


def write_set(folder: Path) -> pd.DataFrame:
    """Write all patients; return a table of path, kind and patient."""
    for label in ("NORMAL", "PNEUMONIA"):
        (folder / label).mkdir(parents=True)
    with ProcessPoolExecutor(available_threads()) as pool:
        written = pool.map(write_patient, [str(folder)] * PATIENTS, range(PATIENTS), chunksize=25)
        rows = [row for rows in written for row in rows]
    return pd.DataFrame(rows, columns=["path", "kind", "patient"])


def judged(planted: pd.DataFrame, group: npt.NDArray[Any]) -> tuple[dict[str, int], int]:
    """Return the leaks found by kind, and the number of distinct patients merged."""
    table = planted.assign(group=group)
    home = table[table["kind"] == "film"].set_index("patient")["group"]
    leaks = table[table["kind"] != "film"]
    together = leaks["group"].to_numpy() == home.loc[leaks["patient"]].to_numpy()
    found = {kind: int(together[(leaks["kind"] == kind).to_numpy()].sum()) for kind in KINDS}
    sizes = table.drop_duplicates(["patient", "group"])["group"].value_counts().to_numpy()
    return found, int((sizes * (sizes - 1) // 2).sum())


def curve(planted: pd.DataFrame, folder: Path) -> list[dict[str, Any]]:
    """Return the leaks found and patients merged at each threshold, among the pairs proposed by the hash."""
    thumbs = np.stack([thumbnail(Image.open(folder / path).convert("L")) for path in planted["path"]])
    pairs, agreement = proposed_pairs(thumbs)
    patient = planted["patient"].to_numpy()
    proposed = len({tuple(sorted(pair)) for pair in patient[pairs].tolist() if pair[0] != pair[1]})
    points = []
    for threshold in THRESHOLDS:
        n_found, n_joined = judged(planted, joined_by(planted, pairs[agreement >= threshold]))
        points.append({"threshold": float(threshold), "found": n_found, "patient_pairs_joined": n_joined})
    return [{"proposed_pairs_of_distinct_patients": proposed}, *points]


def at_network_sizes(planted: pd.DataFrame, folder: Path) -> list[dict[str, Any]]:
    """Return the leaks found and patients merged if images are compared at network size, as `evaluate --data` does."""
    points = []
    for side in NETWORK_SIDES_PX:
        seen = Preprocessing(image_size_px=side)
        pixels = [at_network_size(Image.open(folder / path).convert("L"), seen) for path in planted["path"]]
        pairs, agreement = proposed_pairs(thumbnails(np.stack(pixels), SQUASH))
        n_found, n_joined = judged(planted, joined_by(planted, pairs[agreement >= duplicates.MIN_CORRELATION]))
        points.append({"side_px": side, "found": n_found, "patient_pairs_joined": n_joined})
    return points


def proposed_pairs(thumbs: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the pairs of rows proposed by the hash, and the correlation of each."""
    pairs = duplicates.propose_pairs(duplicates.perceptual_hashes(thumbs))
    return pairs, duplicates.correlations(thumbs, pairs)


def joined_by(planted: pd.DataFrame, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the groups formed by pairs of rows and by the patients in file names."""
    patient = planted["patient"].to_numpy()
    # A copy bears another patient's name; a patient's second image bears the patient's own.
    known = np.where(planted["kind"].isin(["film", SAME_PATIENT]), patient, patient + PATIENTS)
    return joined_groups(np.unique(known, return_inverse=True)[1], pairs)


def draw(points: list[dict[str, Any]], total_pairs: int, path: Path) -> None:
    """Draw the curve."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    x = [point["threshold"] for point in points]
    for kind in KINDS:
        above.plot(x, [100 * point["found"][kind] / PLANTED for point in points], label=kind, lw=1.6)
    above.set_ylabel("planted leaks found (%)")
    above.legend(fontsize=8, ncols=2)
    below.plot(x, [100 * point["patient_pairs_joined"] / total_pairs for point in points], color="black")
    below.axhline(1, color="grey", ls="--", lw=1)
    below.set_yscale("symlog", linthresh=1e-3)
    below.set_ylim(0, 100)
    below.set_ylabel("pairs of distinct patients\nin one group (%)")
    below.set_xlabel("least correlation of details at which a proposed pair is joined")
    for axes in (above, below):
        axes.axvline(duplicates.MIN_CORRELATION, color="grey", lw=1)
    figure.suptitle(
        f"{PATIENTS:,} synthetic patients, {PLANTED} leaks of each kind; the grey line is chestx's threshold"
    )
    figure.savefig(path, dpi=130)


def main() -> None:
    """Plant leaks, split, judge; print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("leaks.json"))
    parser.add_argument("--figure", type=Path, default=Path("leaks.png"))
    parser.add_argument("--keep", type=Path, help="folder in which the images and the study are kept")
    arguments = parser.parse_args()
    total_pairs = PATIENTS * (PATIENTS - 1) // 2
    work = arguments.keep or Path(tempfile.mkdtemp())
    table = work / "planted.csv"
    if not table.exists():
        write_set(work / "data").to_csv(table, index=False)
    planted = pd.read_csv(table)
    record = chestx_cli.split(work / "data", study=work / "study", group_regex=PATIENT, force=True)
    manifest = pd.read_csv(work / "study" / "split.csv").set_index("path")
    found, joined = judged(planted, manifest.loc[planted["path"], "group"].to_numpy())
    parts = manifest.loc[planted["path"], "split"].groupby(planted["patient"].to_numpy()).nunique()
    for kind in KINDS:
        print(f"{kind:20} {found[kind]:4} of {PLANTED} found")
    print(f"pairs of distinct patients in one group: {joined} of {total_pairs:,} ({joined / total_pairs:.4%})")
    print(f"patients with an image in two parts: {int((parts > 1).sum())}")
    first, *points = curve(planted, work / "data")
    proposed = first["proposed_pairs_of_distinct_patients"]
    print(f"pairs of distinct patients proposed by the hash: {proposed:,} ({proposed / total_pairs:.3%})")
    sides = at_network_sizes(planted, work / "data")
    for point in sides:
        print(f"compared at {point['side_px']} px: {point['found']}, {point['patient_pairs_joined']} pairs joined")
    draw(points, total_pairs, arguments.figure)
    document = {
        "patients": PATIENTS,
        "planted": PLANTED,
        "found": found,
        "patient_pairs_joined": joined,
        "patient_pairs": total_pairs,
        "proposed": proposed,
        "threshold": duplicates.MIN_CORRELATION,
        "groups": record.patients,
        "curve": points,
        "at_network_sizes": sides,
    }
    arguments.out.write_text(json.dumps(document, indent=2) + "\n")
    if arguments.keep is None:
        shutil.rmtree(work)
    missed = {kind: n for kind, n in found.items() if kind in MUST_BE_FOUND and n < PLANTED}
    if missed or joined > 0.01 * total_pairs:
        raise SystemExit(f"missed: {missed}, joined by mistake: {joined}")


if __name__ == "__main__":
    main()
