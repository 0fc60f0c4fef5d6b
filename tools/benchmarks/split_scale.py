"""Scaling of `chestx split`: a manifest of a million rows, and many small files compared with just decoding them.

    python -m tools.benchmarks.split_scale --out split_scale.json

The files are drawn once into --work and reused. They resemble chest images, so that the search for near-duplicates has
realistic work. Reference and command alternate, each in its own process; the reference is the faster of threads and
processes. Other load on the machine disturbs both, so processor time is printed beside wall time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from chestx_cli.core.machine import available_threads
from chestx_cli.data.synthetic.radiographs import draw_anatomy, draw_opacity, draw_radiograph

COMMAND = (sys.executable, "-c", "from chestx_cli.cli.main import main; main()", "split")
BASES = 64
PATIENT = r"/(\d{8})_\d{3}\."
PEER = """
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from PIL import Image

def decode(paths):
    for path in paths:
        with Image.open(path) as image:
            image.convert("L")

if __name__ == "__main__":
    folder, kind, workers = sys.argv[1:]
    paths = sorted(str(path) for path in Path(folder).rglob("*.*g"))
    chunks = [paths[start : start + 256] for start in range(0, len(paths), 256)]
    pool = ThreadPoolExecutor if kind == "threads" else ProcessPoolExecutor
    with pool(int(workers)) as workers:
        list(workers.map(decode, chunks))
"""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Time and memory of a child process."""

    wall_s: float
    cpu_s: float
    peak_mb: float


def measured(words: list[str]) -> Cost:
    """Run a command and return its cost, including its child processes; raises RuntimeError if it fails."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(child.pid, 0)
        wall_s = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            errors.seek(0)
            raise RuntimeError(errors.read().decode())
    return Cost(wall_s=wall_s, cpu_s=usage.ru_utime + usage.ru_stime, peak_mb=usage.ru_maxrss / 1024)


def write_manifest(path: Path, rows: int) -> None:
    """Write a manifest of `rows` images that do not exist, with one to four per patient."""
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(rows), rng.integers(1, 5, rows))[:rows]
    sick = rng.random(rows)[patient] < 0.4
    with path.open("w") as file:
        file.write("path,label,group,sha256\n")
        for row in range(rows):
            label = "PNEUMONIA" if sick[row] else "NORMAL"
            sha256 = hashlib.sha256(str(row).encode()).hexdigest()
            file.write(f"{label}/site/{patient[row]:08d}_{row:08d}.png,{label},p{patient[row]:08d},{sha256}\n")


def draw_some(folder: str, first: int, count: int, side_px: int) -> None:
    """Write images: two drawn chests mixed, rotated, scaled and shifted, with soft shapes and grain added.

    Their hashes and details differ as much as those of real patients; drawing each from scratch would take an hour.
    """
    rng = np.random.default_rng(0)
    bases = []
    for _ in range(BASES):
        anatomy, opacity = draw_anatomy(rng), draw_opacity(rng)
        film = draw_radiograph(anatomy, opacity if rng.random() < 0.5 else None, rng, size_px=side_px)
        bases.append(film.astype(np.float32))
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        one, other = rng.choice(BASES, 2, replace=False)
        mixed = Image.fromarray(bases[one] + rng.uniform(0, 0.7) * (bases[other] - bases[one]))
        turn, scale = rng.normal(0, 0.06), rng.uniform(0.85, 1.1, 2)
        shift = side_px / 2 * (1 - scale) + rng.normal(0, 0.03 * side_px, 2)
        warp = (scale[0], turn, shift[0] - turn * side_px / 2, -turn, scale[1], shift[1] + turn * side_px / 2)
        chest = mixed.transform(mixed.size, Image.Transform.AFFINE, warp, resample=Image.Resampling.BILINEAR)
        pixels = np.asarray(chest)
        for cells, strength in ((9, 16), (24, 12)):
            soft = Image.fromarray(rng.normal(0, strength, (cells, cells)).astype(np.float32))
            pixels = pixels + np.asarray(soft.resize(mixed.size, Image.Resampling.BILINEAR))
        pixels = np.clip(pixels + 4 * rng.standard_normal(pixels.shape, dtype=np.float32), 0, 255).astype(np.uint8)
        label, suffix = ("NORMAL", "PNEUMONIA")[number % 2], ("png", "jpeg")[number // 2 % 2]
        Image.fromarray(pixels).save(
            Path(folder) / label / f"{number // 4:08d}_{number % 4:03d}.{suffix}", quality=90, compress_level=1
        )


def draw_files(folder: Path, n: int, side_px: int) -> None:
    """Write n images in two classes, half PNG and half JPEG; an existing folder is reused."""
    if folder.exists():
        return
    building = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(building, ignore_errors=True)
    for label in ("NORMAL", "PNEUMONIA"):
        (building / label).mkdir(parents=True)
    step = 2000
    with ProcessPoolExecutor(available_threads()) as pool:
        futures = [
            pool.submit(draw_some, str(building), first, min(step, n - first), side_px) for first in range(0, n, step)
        ]
        for future in futures:
            future.result()
    building.rename(folder)


def split_files(folder: Path, work: Path, image_size_px: int) -> Cost:
    """Split a folder into a new study."""
    study = work / "study"
    shutil.rmtree(study, ignore_errors=True)
    return measured(
        [*COMMAND, str(folder), "--study", str(study), "--image-size", str(image_size_px), "--group-regex", PATIENT]
    )


def median(costs: list[Cost]) -> Cost:
    """Return the medians of time and memory."""
    return Cost(**{name: statistics.median(getattr(cost, name) for cost in costs) for name in asdict(costs[0])})


def show(name: str, cost: Cost, more: str = "") -> None:
    """Print one line of the table."""
    print(f"{name:58} {cost.wall_s:8.1f} s {cost.cpu_s:8.1f} s cpu {cost.peak_mb:8.0f} MB {more}", flush=True)


def measure_rows(work: Path, rows: int, rounds: int) -> Cost:
    """Split a manifest without opening its images."""
    manifest = work / f"manifest-{rows}.csv"
    if not manifest.exists():
        write_manifest(manifest, rows)
    costs = []
    for _ in range(rounds):
        shutil.rmtree(work / "study", ignore_errors=True)
        costs.append(measured([*COMMAND, str(manifest), "--unread", "--study", str(work / "study")]))
    return median(costs)


def measure_files(work: Path, n: int, side_px: int, image_size_px: int, rounds: int) -> dict[str, Cost]:
    """Alternate between decoding the files of a folder and splitting it."""
    folder, peer = work / f"files-{side_px}-{n}", work / "peer.py"
    draw_files(folder, n, side_px)
    peer.write_text(PEER)
    threads = str(available_threads())
    costs: dict[str, list[Cost]] = {"threads": [], "processes": [], "split": []}
    for _ in range(rounds):
        for kind in ("threads", "processes"):
            costs[kind].append(measured([sys.executable, str(peer), str(folder), kind, threads]))
        costs["split"].append(split_files(folder, work, image_size_px))
    return {name: median(cost) for name, cost in costs.items()}


def main() -> None:
    """Measure a manifest and two folders; print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "chestx-split-scale")
    parser.add_argument("--out", type=Path, default=Path("split_scale.json"))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=224, help="side of the drawn files in pixels")
    parser.add_argument("--image-size", type=int, default=224, help="side of the kept pixels")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {available_threads()} processors")
    results: dict[str, object] = {"load_average": os.getloadavg(), "processors": available_threads()}
    rows = measure_rows(arguments.work, arguments.rows, arguments.rounds)
    show(f"{arguments.rows:,} rows, --unread", rows, "(at most 60 s, 1,500 MB)")
    results["rows"] = {"rows": arguments.rows, **asdict(rows)}
    small = measure_files(arguments.work, arguments.files // 10, arguments.side, arguments.image_size, arguments.rounds)
    large = measure_files(arguments.work, arguments.files, arguments.side, arguments.image_size, arguments.rounds)
    peer = min(large["threads"], large["processes"], key=lambda cost: cost.wall_s)
    for kind in ("threads", "processes"):
        show(f"{arguments.files:,} files of {arguments.side} px read and decoded by {kind}", large[kind])
    show(f"{arguments.files // 10:,} files split, kept at {arguments.image_size} px", small["split"])
    show(f"{arguments.files:,} files split, kept at {arguments.image_size} px", large["split"])
    ratio, cpu_ratio = large["split"].wall_s / peer.wall_s, large["split"].cpu_s / peer.cpu_s
    print(f"  {ratio:.2f} times the wall time and {cpu_ratio:.2f} times the processor time of decoding (at most 1.3)")
    growth = large["split"].wall_s / small["split"].wall_s
    print(f"  {growth:.1f} times the time for 10 times the images (at most 10.5)")
    results["files"] = {
        "files": arguments.files,
        "side_px": arguments.side,
        "image_size_px": arguments.image_size,
        "growth": growth,
        "ratio": ratio,
        "cpu_ratio": cpu_ratio,
        "tenth": asdict(small["split"]),
        **{name: asdict(cost) for name, cost in large.items()},
    }
    arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
