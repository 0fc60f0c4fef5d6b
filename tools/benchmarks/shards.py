"""Reading of tar shards: time and memory of an epoch, compared with reading the shards in order.

    python -m tools.benchmarks.shards --out shards.json

The shards are written to --work once and reused: small JPEG files of noise, each with its label, and a manifest.
Readers alternate, each in its own process. Other load on the machine disturbs wall time, so processor time is printed
beside it. Readers whose libraries are not installed are left out.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib
import importlib.util
import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from chestx_cli.core.machine import available_threads
from chestx_cli.core.progress import SilentReporter
from chestx_cli.data.images.decoding import at_network_size, decode_content
from chestx_cli.data.images.pixel_cache import CHUNK
from chestx_cli.networks.epoch_order import batches_of, draw_order, in_runs
from chestx_cli.networks.parallel.ranks import Ranks
from chestx_cli.networks.training_data import SHUFFLE_BUFFER, read_fit_data
from chestx_cli.records.preprocessing import Preprocessing
from chestx_cli.store.directory import Study

COMMAND = (sys.executable, "-m", "chestx_cli")
SAMPLES = 3000
BATCH = 256
# Number of times that memory is measured in an epoch.
MEMORY_SAMPLES = 20


def write_shard(path: str, first: int, count: int, side_px: int) -> list[tuple[str, str, str, str]]:
    """Write images, two per patient, into one shard; return their rows of the manifest."""
    rows = []
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + count):
            rng = np.random.default_rng(number)
            soft = Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8)).resize((side_px, side_px))
            grey = np.asarray(soft, dtype=np.float32) / 2 + rng.normal(64, 20, (side_px, side_px))
            file = io.BytesIO()
            Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
            label = ("NORMAL", "PNEUMONIA")[number // 2 % 3 == 0]
            for suffix, content in (("jpg", file.getvalue()), ("cls", label.encode())):
                member = tarfile.TarInfo(f"{number:08d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            sha256 = hashlib.sha256(file.getvalue()).hexdigest()
            rows.append((f"{Path(path).name}/{number:08d}.jpg", label, f"p{number // 2:07d}", sha256))
    return rows


def write_shards(folder: Path, images: int, side_px: int) -> Path:
    """Write shards and their manifest; an existing manifest is reused."""
    manifest = folder / "films.csv"
    if manifest.exists():
        return manifest
    folder.mkdir(parents=True, exist_ok=True)
    firsts = range(0, images, SAMPLES)
    with ProcessPoolExecutor(available_threads()) as pool:
        futures = [
            pool.submit(write_shard, str(folder / f"films-{n:05d}.tar"), first, min(SAMPLES, images - first), side_px)
            for n, first in enumerate(firsts)
        ]
        rows = [row for future in futures for row in future.result()]
    with manifest.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "group", "sha256"))
        writer.writerows(rows)
    return manifest


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of reading all images once: time, memory over time (without mapped files), and peak memory."""

    images: int
    wall_s: float
    cpu_s: float
    memory_mb: tuple[float, ...]
    peak_mb: float


def memory_mb() -> float:
    """Return the current private memory of this process."""
    resident, shared = Path("/proc/self/statm").read_text().split()[1:3]
    return (int(resident) - int(shared)) * resource.getpagesize() / 2**20


def measured(parts: Iterator[int], expected: int) -> Cost:
    """Run a reader, which yields numbers of images read, to its end; return its cost."""
    memory: list[float] = []
    n = 0
    start_s, start_cpu = time.perf_counter(), os.times()
    for count in parts:
        n += count
        if n >= expected * (len(memory) + 1) / MEMORY_SAMPLES:
            memory.append(round(memory_mb(), 1))
    wall_s, end_cpu = time.perf_counter() - start_s, os.times()
    cpu_s = sum(end - start for end, start in zip(end_cpu[:4], start_cpu[:4], strict=True))
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Cost(images=n, wall_s=wall_s, cpu_s=cpu_s, memory_mb=tuple(memory), peak_mb=peak_mb)


def in_tars(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the images of all shards in order, read by the standard library."""
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                content = file.read() if file else b""
                if member.name.endswith(".jpg"):
                    yield member.name, content


def by_webdataset(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the images of all shards in order, read by webdataset."""
    import webdataset

    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    for sample in webdataset.WebDataset(shards, shardshuffle=False):
        yield sample["__key__"] + ".jpg", sample["jpg"]


def decoder(preprocessing: Preprocessing) -> Callable[[tuple[str, bytes]], Any]:
    """Return the package's decoder of an image's bytes, to network size."""

    def decode(named: tuple[str, bytes]) -> Any:
        grey, _ = decode_content(named[1], Path(named[0]), preprocessing)
        return at_network_size(grey, preprocessing)

    return decode


def one_by_one(read: Callable[[Path], Iterator[tuple[str, bytes]]], folder: Path, side_px: int) -> Iterator[int]:
    """Read and decode all images in order, in one thread."""
    decode = decoder(Preprocessing(image_size_px=side_px))
    for named in read(folder):
        decode(named)
        yield 1


def by_threads(folder: Path, side_px: int) -> Iterator[int]:
    """Read all images in order, and decode them in as many threads as the package uses."""
    decode = decoder(Preprocessing(image_size_px=side_px))
    with ThreadPoolExecutor(available_threads()) as pool:
        named = in_tars(folder)

        def more() -> list[Future[list[Any]]]:
            chunk = list(islice(named, CHUNK))
            return [pool.submit(lambda: [decode(one) for one in chunk])] if chunk else []

        waiting = [future for _ in range(2 * available_threads()) for future in more()]
        while waiting:
            yield len(waiting.pop(0).result())
            waiting += more()


def by_workers(folder: Path, side_px: int) -> Iterator[int]:
    """Read, decode, shuffle and batch all images with webdataset in torch's DataLoader, a worker per processor."""
    import torch
    import webdataset

    decode = decoder(Preprocessing(image_size_px=side_px))
    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=100)
        .shuffle(SHUFFLE_BUFFER)
        .map(lambda sample: torch.from_numpy(np.array(decode((f"{sample['__key__']}.jpg", sample["jpg"])))))
    )
    for images in torch.utils.data.DataLoader(dataset, batch_size=BATCH, num_workers=available_threads()):
        yield len(images)


def epoch(study: Study, side_px: int, balance: str) -> Iterator[int]:
    """Read all images of a study as training does, up to the grey batches that are augmented.

    Reading the split is not counted: training does it once.
    """
    split = study.read_split()
    split = replace(split, parts=np.full(len(split.parts), "train", dtype=object))
    data = read_fit_data(study, split, Preprocessing(image_size_px=side_px), SilentReporter())
    buffer = data.shuffle_buffer or len(split.parts)

    def batches_taken() -> Iterator[int]:
        rng = np.random.default_rng(0)
        batches = in_runs(batches_of(draw_order(split, balance, rng), BATCH), buffer, Ranks(), rng)
        with data.greys(np.concatenate(batches), "cpu", at_once=buffer) as take:
            for batch in batches:
                yield len(take(len(batch)))

    return batches_taken()


READERS: dict[str, Callable[[Path, Path, int], Iterator[int]]] = {
    "tarfile in order, one thread": lambda folder, _, side_px: one_by_one(in_tars, folder, side_px),
    "tarfile in order, threads": lambda folder, _, side_px: by_threads(folder, side_px),
    "webdataset in order, one thread": lambda folder, _, side_px: one_by_one(by_webdataset, folder, side_px),
    "webdataset shuffled, DataLoader workers": lambda folder, _, side_px: by_workers(folder, side_px),
    "epoch": lambda _, study, side_px: epoch(Study(study), side_px, "loss"),
    "epoch, balanced draw": lambda _, study, side_px: epoch(Study(study), side_px, "both"),
}


def available() -> list[str]:
    """Return the readers whose libraries are installed."""
    has_webdataset = importlib.util.find_spec("webdataset") is not None
    return [name for name in READERS if has_webdataset or "webdataset" not in name]


def split_unread(manifest: Path, study: Path) -> dict[str, float]:
    """Split the images without opening them; return time and memory."""
    shutil.rmtree(study, ignore_errors=True)
    start_s = time.perf_counter()
    child = subprocess.Popen(
        [*COMMAND, "split", str(manifest), "--unread", "--study", str(study)], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"chestx split ended with {child.returncode}")
    wall_s = time.perf_counter() - start_s
    return {"wall_s": wall_s, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss / 1024}


def main() -> None:
    """Measure all readers; print and write their costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "chestx-shards")
    parser.add_argument("--out", type=Path, default=Path("shards.json"))
    parser.add_argument("--images", type=int, default=300_000)
    parser.add_argument("--side", type=int, default=48, help="side of the drawn images in pixels")
    parser.add_argument("--image-size", type=int, default=32, help="side of the decoded images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--readers", nargs="+", default=list(READERS), choices=list(READERS), metavar="READER")
    parser.add_argument("--one", help="run one reader in this process and print its cost")
    arguments = parser.parse_args()
    folder = arguments.work / f"shards-{arguments.side}-{arguments.images}"
    study = arguments.work / f"study-{arguments.side}-{arguments.images}"
    if arguments.one:
        # Imported now, so that imports are not measured.
        for library in ("torch", "PIL.JpegImagePlugin", *(["webdataset"] if "webdataset" in arguments.one else [])):
            importlib.import_module(library)
        parts = READERS[arguments.one](folder, study, arguments.image_size)
        print(json.dumps(asdict(measured(parts, arguments.images))))
        return
    manifest = write_shards(folder, arguments.images, arguments.side)
    size_bytes = sum(path.stat().st_size for path in folder.glob("*.tar"))
    found: dict[str, Any] = {
        "images": arguments.images,
        "shards_bytes": size_bytes,
        "processors": available_threads(),
        "load_average": os.getloadavg(),
        "split": split_unread(manifest, study),
    }
    print(f"split --unread: {found['split']}", flush=True)
    costs: dict[str, list[dict[str, Any]]] = {name: [] for name in available() if name in arguments.readers}
    for _ in range(arguments.rounds):
        for name, own in costs.items():
            words = ["--one", name, *sys.argv[1:]]
            child = subprocess.run(
                [sys.executable, "-m", "tools.benchmarks.shards", *words], check=True, capture_output=True, text=True
            )
            own.append(json.loads(child.stdout.splitlines()[-1]))
            print(f"{name:42} {own[-1]['wall_s']:7.1f} s {own[-1]['cpu_s']:7.1f} s cpu", flush=True)
    for name, own in costs.items():
        wall_s, cpu_s = (statistics.median(cost[key] for cost in own) for key in ("wall_s", "cpu_s"))
        memory = own[0]["memory_mb"]
        print(
            f"{name:42} {wall_s:7.1f} s {cpu_s:7.1f} s cpu {1e6 * wall_s / own[0]['images']:6.0f} µs an image, memory "
            f"{memory[1]:.0f} MB at a tenth, {max(memory):.0f} MB at most, {memory[-1]:.0f} MB at the end"
        )
    found["readers"] = costs
    arguments.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
