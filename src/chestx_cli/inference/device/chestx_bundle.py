"""Predicts chest X-rays with the model that lies beside this file, or times that model.

Research software. Not a medical device. Needs Python 3.9 or newer with numpy, Pillow and onnxruntime, and zstandard
for a compressed model (not from Python 3.14 on). Reads PNG, JPEG, TIFF, BMP and WebP, of 8 or 16 bits, whatever they
are named, and DICOM where pydicom 3 is installed (Python 3.11 or newer; `pip install pydicom pylibjpeg
pylibjpeg-openjpeg`). Images are decoded and resized as chestx does it.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import importlib
import importlib.util
import io
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, TypedDict

# Set before the import, which would be reported; the variable's name depends on ONNX Runtime's version.
os.environ.update(ORT_DISABLE_TELEMETRY="1", ORT_TELEMETRY_DISABLED="1")
try:
    import numpy as np
    import onnxruntime
    import PIL
    from PIL import Image
except ImportError as error:
    sys.stderr.write(f"error: {error}\n  {sys.executable} -m pip install numpy pillow onnxruntime\n")
    raise SystemExit(1) from None

NOTICE = "Research software. Not a medical device."
DESCRIPTION_SCHEMA, PREDICTIONS_SCHEMA = "chestx.bundle/1", "chestx.bundle-predictions/1"
PREPROCESSING_VERSIONS = (2, 3, 4)
LEGACY_VERSION, SQUASHING_VERSION = PREPROCESSING_VERSIONS[:2]
COPY_AGAIN = "copy the whole bundle again"
DICOM_SUFFIXES = (".dcm", ".dicom")
NAMES_OF_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", *DICOM_SUFFIXES)
KINDS_READ = ("image", "DICOM")
PACKED_SUFFIX = ".zst"
READER, DICOM_NEEDS = "chestx_images.py", "pydicom pylibjpeg pylibjpeg-openjpeg"
RECORD_SCHEMA, RUNTIME = "chestx.benchmark/3", "onnxruntime"
# Warm-up ends after this many calls or half the measurement time; only the first call is slow.
WARMUP_CALLS = 5
MIN_CALLS = 3
# A model whose rounds differ by more than this factor, or whose threads wait for a processor for more than this share
# of their time, was not measured on an idle machine.
MOST_SPREAD, MOST_WAITED = 1.5, 0.1

Array = np.ndarray[Any, Any]
# What chestx takes for valid, too.
MODEL_FILES, MAX_MODEL_BYTES = ("model.onnx", f"model.onnx{PACKED_SUFFIX}"), 2**31 - 1
MAX_IMAGE_SIZE_PX = 4096
MIN_STD, MAX_STATISTIC = 1e-6, 1e6
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-6, 1e6
MIN_VALUE_BITS, MAX_VALUE_BITS = 8, 16
SQUASH = "squash"
RESIZINGS = (SQUASH, "letterbox", "center-crop")

# Network input [N, 3, H, W] to logits [N, classes].
Compute = Callable[[Array], Array]


class ModelFile(TypedDict):
    """The model in `model.json`; hash and size are those of the ONNX file also where the bundle has it compressed."""

    file: str
    sha256: str
    size_bytes: int


class _Preprocessing(TypedDict):
    version: int
    image_size_px: int
    mean: list[float]
    std: list[float]


class Preprocessing(_Preprocessing, total=False):
    """How an image becomes the network's input; older descriptions lack what is new."""

    value_bits: int
    resize: str
    window: str | None
    lateral: bool


class Description(TypedDict):
    """The fields of `model.json` that this script uses."""

    schema: str
    made_by: str
    variant: str
    labels: list[str]
    positive: str
    threshold: float
    temperature: float
    preprocessing: Preprocessing
    model: ModelFile
    # The row of the model's size in a benchmark record.
    cost: dict[str, object]
    # Sentences, each with its stamp, such as that nothing shows that the model has learned anything.
    caveats: list[str]


class Decoding(TypedDict):
    """Arguments of `grey_pixels`."""

    side_px: int
    value_bits: int
    legacy: bool
    resize: str
    window: str | None
    lateral: bool


class ImageRow(TypedDict):
    """The prediction of an image, or why it cannot be read; doubts about it are joined."""

    path: str
    label: str | None
    probability: float | None
    unreadable: str | None
    doubts: str | None


class Round(TypedDict):
    """Durations of a round's calls in seconds by batch size, and the memory of its process in bytes.

    waited_share: share of their time that the threads waited for a processor; None if the system does not report it.
    """

    seconds: dict[str, list[float]]
    peak_bytes: int | None
    runtime_bytes: int | None
    model_sha256: str
    threads: int
    environment: dict[str, str]
    waited_share: float | None


class BatchTimes(TypedDict):
    """Latency and throughput with one batch size, over all rounds."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    batch_size: int
    calls: int
    images_per_s: float
    round_p50_ms: list[float]


class BundleError(Exception):
    """An expected failure, with a statement of the fact and a remedy."""

    def __init__(self, fact: str, remedy: str = "") -> None:
        super().__init__(fact)
        self.fact, self.remedy = fact, remedy


class UnreadableImageError(Exception):
    """An image that cannot be decoded, with the reason."""


def read_description(folder: Path) -> Description:
    """Return the bundle's `model.json`; raises BundleError if it is missing, damaged or newer than this script."""
    path = folder / "model.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_float=_finite, parse_constant=_finite)
    except OSError as error:
        raise BundleError(f"cannot read {path.name}: {error.strerror}", COPY_AGAIN) from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path.name} is damaged: {error}", COPY_AGAIN) from error
    if not isinstance(document, dict) or document.get("schema") != DESCRIPTION_SCHEMA:
        raise BundleError(f"{path.name} is no {DESCRIPTION_SCHEMA} description", COPY_AGAIN)
    if fault := _fault(document):
        raise BundleError(f"{path.name} is damaged at {fault}", COPY_AGAIN)
    if document["preprocessing"]["version"] not in PREPROCESSING_VERSIONS:
        raise BundleError("this script is older than the model beside it", COPY_AGAIN)
    # Absent from older bundles.
    document["caveats"] = document.get("caveats") or []
    description: Description = document  # type: ignore[assignment]  # checked
    return description


def _finite(text: str) -> float:
    value = float(text)
    if not abs(value) < float("inf"):
        raise ValueError(f"{text} is not a number")
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    # A whole number may be larger than any other.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _list_of(rule: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(rule, value))


def _three_within(least: float, most: float, value: Any) -> bool:
    return _list_of(_is_number)(value) and len(value) == 3 and all(least <= number <= most for number in value)


# The fields that this script uses, and what is valid in each.
RULES: Mapping[str, Callable[[Any], bool]] = {
    "made_by": _is_text,
    "variant": _is_text,
    "labels": lambda value: _list_of(_is_text)(value) and len(value) == len(set(value)) == 2,
    "positive": _is_text,
    "threshold": lambda value: _is_number(value) and 0 <= value <= 1,
    "temperature": lambda value: _is_number(value) and MIN_TEMPERATURE <= value <= MAX_TEMPERATURE,
    "preprocessing.version": _whole(1, 2**31),
    "preprocessing.image_size_px": _whole(1, MAX_IMAGE_SIZE_PX),
    "preprocessing.mean": lambda value: _three_within(-MAX_STATISTIC, MAX_STATISTIC, value),
    "preprocessing.std": lambda value: _three_within(MIN_STD, MAX_STATISTIC, value),
    "preprocessing.value_bits": _whole(MIN_VALUE_BITS, MAX_VALUE_BITS),
    "preprocessing.resize": lambda value: value in RESIZINGS,
    "preprocessing.window": lambda value: value is None or (_is_text(value) and bool(value.strip())),
    "preprocessing.lateral": lambda value: value is None or isinstance(value, bool),
    "model.file": lambda value: value in MODEL_FILES,
    "model.sha256": _is_text,
    "model.size_bytes": _whole(1, MAX_MODEL_BYTES),
    "cost.model_sha256": _is_text,
    "caveats": lambda value: value is None or _list_of(_is_text)(value),
}
# Older descriptions lack them.
ADDED = ("caveats", *(f"preprocessing.{name}" for name in ("value_bits", "resize", "window", "lateral")))


def _fault(document: Any) -> str:
    """Return the first field that is missing or not valid, with its value; empty if there is none."""
    for name, is_valid in RULES.items():
        value: Any = document
        *above, last = name.split(".")
        for part in above:
            value = value.get(part)
            if not isinstance(value, dict):
                return f"{part}: {_shown(value)}"
        if last in value and not is_valid(value[last]):
            return f"{name}: {_shown(value[last])}"
        if last not in value and name not in ADDED:
            return f"{name}: it is missing"
    if document["positive"] not in document["labels"]:
        return f"positive: {_shown(document['positive'])} is none of the labels"
    preprocessing = document["preprocessing"]
    version, bits = preprocessing["version"], preprocessing.get("value_bits", MAX_VALUE_BITS)
    if version <= LEGACY_VERSION and bits != MAX_VALUE_BITS:
        return f"preprocessing.value_bits: {bits} in version {version}"
    if version <= SQUASHING_VERSION and (resize := preprocessing.get("resize", SQUASH)) != SQUASH:
        return f"preprocessing.resize: {resize} in version {version}"
    return ""


def _shown(value: Any) -> str:
    return json.dumps(value)[:60]


def checked_model(folder: Path, description: Description) -> Path | bytes:
    """Return the model file, or its content where it is compressed, after checking the hash; raises BundleError."""
    model = folder / description["model"]["file"]
    digest = hashlib.sha256()
    unpacked = None
    try:
        with model.open("rb") as file:
            if model.suffix == PACKED_SUFFIX:
                unpacked = _unpacked(file, description["model"]["size_bytes"])
                digest.update(unpacked)
            else:
                while block := file.read(2**20):
                    digest.update(block)
    except OSError as error:
        raise BundleError(f"cannot read {model.name}: {error.strerror}", COPY_AGAIN) from error
    except (ValueError, EOFError) as error:
        raise BundleError(f"{model.name} is damaged: {error}", COPY_AGAIN) from error
    if digest.hexdigest() != description["model"]["sha256"]:
        raise BundleError(f"{model.name} was changed since it was made (sha256 differs from model.json)", COPY_AGAIN)
    return model if unpacked is None else unpacked


def _unpacked(file: BinaryIO, size_bytes: int) -> bytes:
    """Return at most one byte more than a compressed file should have; raises BundleError, ValueError, EOFError."""
    try:
        if sys.version_info >= (3, 14):
            library: Any = importlib.import_module("compression.zstd")
            reader = library.ZstdFile(file)
        else:
            library = importlib.import_module("zstandard")
            reader = library.ZstdDecompressor().stream_reader(file)
    except ImportError:
        raise BundleError(
            "the model is compressed, and zstandard is not installed", f"{sys.executable} -m pip install zstandard"
        ) from None
    try:
        content: bytes = reader.read(size_bytes + 1)
    except library.ZstdError as error:
        raise ValueError(str(error)) from error
    return content


def decoding(description: Description) -> Decoding:
    """Return the decoding arguments for the model: side, resizing, bits per value, whether to decode as version 2."""
    preprocessing = description["preprocessing"]
    return {
        "side_px": preprocessing["image_size_px"],
        "value_bits": preprocessing.get("value_bits", MAX_VALUE_BITS),
        "legacy": preprocessing["version"] == LEGACY_VERSION,
        "resize": preprocessing.get("resize", SQUASH),
        "window": preprocessing.get("window"),
        "lateral": bool(preprocessing.get("lateral")),
    }


def grey_pixels(
    path: Path,
    side_px: int,
    value_bits: int = MAX_VALUE_BITS,
    *,
    legacy: bool = False,
    resize: str = SQUASH,
    window: str | None = None,
    lateral: bool = False,
    doubts: list[str] | None = None,
) -> Array:
    """Return an image file as 8-bit grey pixels at network size [side, side]; raises UnreadableImageError.

    Grey values of more than 8 bits are scaled from the range 0 to 2^value_bits - 1. `window` and
    `lateral` apply to DICOM; doubts about a DICOM image are appended to `doubts`.
    """
    reader = image_reader()
    try:
        reader.require_file_size(path.stat().st_size)
        data = path.read_bytes()
        if not data:
            raise UnreadableImageError(reader.NO_BYTES)
        if kind_of(path, data) == "DICOM":
            _require_pydicom()
            film = reader.read_dicom(data, window=window, lateral=lateral, legacy=legacy)
            grey = Image.fromarray(film.pixels)
            if doubts is not None:
                doubts += reader.doubts_of(film.readings)
        else:
            grey = reader.read_raster(data, value_bits=value_bits, legacy=legacy).grey
    except OSError as error:
        raise UnreadableImageError(error.strerror or "the system cannot read it") from error
    except reader.UnreadableImageError as error:
        raise UnreadableImageError(error.detail) from error
    counts = reader.counts_of(grey)
    if not legacy and reader.is_one_grey(grey, counts):
        raise UnreadableImageError(reader.ONE_GREY)
    if reader.is_mask(grey, counts):
        raise UnreadableImageError(reader.MASK)
    return np.asarray(reader.square_of(grey, side_px, resize))


@cache
def image_reader() -> ModuleType:
    """Return the module beside this file that reads images; raises BundleError if it is missing."""
    path = Path(__file__).resolve().with_name(READER)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.exists():
        raise BundleError(f"cannot read {READER}: it is not beside this script", COPY_AGAIN)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    # Decoders' own messages may quote what is in a file.
    module.silence_decoders()
    return module


def _require_pydicom() -> None:
    """Raise UnreadableImageError where DICOM cannot be read."""
    if sys.version_info < (3, 11):  # noqa: UP036 - of the device, not of chestx
        raise UnreadableImageError("DICOM, which needs Python 3.11 or newer; convert it to PNG")
    try:
        import pydicom.pixels  # noqa: F401 - version 3 has it
    except ImportError:
        raise UnreadableImageError(f"DICOM, which needs pydicom: python -m pip install {DICOM_NEEDS}") from None


def network_input(grey: Array, preprocessing: Preprocessing) -> Array:
    """Return grey pixels [H, W] (0-255) as network input [1, 3, H, W]."""
    mean, std = (np.asarray(preprocessing[name], dtype=np.float32).reshape(1, 3, 1, 1) for name in ("mean", "std"))
    scaled: Array = (grey[None, None].astype(np.float32) / np.float32(255) - mean) / std
    return scaled


@cache
def has_vnni() -> bool:
    """Return whether this x86 processor is known to add products of 8-bit integers in 32 bits."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text(errors="replace").splitlines() if cpu_info.exists() else []
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return "avx512_vnni" in flags or "avx_vnni" in flags


def open_model(model: Path | bytes, description: Description, threads: int) -> Compute:
    """Open an ONNX file or its content in ONNX Runtime on the CPU; return it as a function.

    Raises BundleError if the runtime refuses it, or it takes other images or has other classes than described.
    """
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Avoids saturation on x86 processors without VNNI if weights use the full 8-bit range. With VNNI nothing saturates,
    # but ONNX Runtime would still use the slower kernels.
    if not has_vnni():
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        session = onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )
    # ONNX Runtime's exception classes have no common base except this one.
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise BundleError(
            f"onnxruntime {onnxruntime.__version__} cannot open the model: {reason}", "install a newer onnxruntime"
        ) from error
    (source,), (target,) = session.get_inputs(), session.get_outputs()
    side_px = description["preprocessing"]["image_size_px"]
    if [*source.shape[1:], *target.shape[1:]] != [3, side_px, side_px, len(description["labels"])]:
        raise BundleError(
            f"the model computes {target.shape} from {source.shape}; model.json says {len(description['labels'])} "
            f"classes from images of {side_px} px",
            COPY_AGAIN,
        )

    def compute(inputs: Array) -> Array:
        logits: Array = session.run(None, {source.name: inputs})[0]
        return logits

    return compute


def probability_of_positive(logits: Array, description: Description) -> float:
    """Return the probability of the positive class: the softmax of logits [1, classes] divided by the temperature.

    Raises BundleError for logits that are not finite.
    """
    scaled = (logits[0] / np.float32(description["temperature"])).astype(np.float64)
    if not np.isfinite(scaled).all():
        raise BundleError("the model computes logits that are not finite", COPY_AGAIN)
    exponentials = np.exp(scaled - scaled.max())
    return float((exponentials / exponentials.sum())[description["labels"].index(description["positive"])])


def processors() -> int:
    """Return the number of processors available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def image_files(paths: list[Path]) -> list[Path]:
    """Return image files; folders are searched recursively, sorted, without hidden files. Raises BundleError."""
    images: list[Path] = []
    for path in paths:
        if not path.exists():
            raise BundleError(f"{path} does not exist", "give image files, or folders of them")
        if not path.is_dir():
            images.append(path)
            continue
        files = [
            file
            for file in sorted(path.rglob("*"))
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
        ]
        kinds = {file: "image" if file.suffix.lower() in NAMES_OF_IMAGES else _kind_of_file(file) for file in files}
        below = [file for file in files if kinds[file] in KINDS_READ]
        others = ", ".join(f"{n} {kind}" for kind, n in Counter(kinds.values()).items() if kind not in KINDS_READ)
        if not below:
            held = f", but {others}" if others else ""
            raise BundleError(f"no images in {path}{held}", "give PNG, JPEG, TIFF, BMP, WebP or DICOM files")
        if others:
            sys.stderr.write(f"warning: left out of {path}: {others}\n")
        images += below
    return images


def _kind_of_file(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            kind = kind_of(file, opened.read(132))
        if kind == "DICOM":
            _require_pydicom()
            if image_reader().object_without_image(file) is not None:
                return "DICOM without an image"
    except OSError:
        return "that cannot be opened"
    except UnreadableImageError:
        # Kept as an image: predicting it reports that pydicom is missing.
        return "DICOM"
    return kind


def kind_of(file: Path, head: bytes) -> str:
    """Return the kind of a file from its first bytes, "image" or "DICOM" if it can be read.

    If they are of no known kind, the name decides: a file named as DICOM is refused as DICOM.
    """
    reader = image_reader()
    if reader.begins_as_dicom(head):
        return "DICOM"
    if reader.raster_kind(head) is not None:
        return "image"
    return "DICOM" if file.suffix.lower() in DICOM_SUFFIXES else "no image"


def predict(folder: Path, paths: list[Path], *, threads: int, as_csv: bool, allow_lateral: bool) -> int:
    """Write label and probability of every image to stdout; return 1 if any could not be read, else 0."""
    description = read_description(folder)
    files = image_files(paths)
    compute = open_model(checked_model(folder, description), description, threads)
    _warn_of(description)
    negative = next(label for label in description["labels"] if label != description["positive"])
    settings = decoding(description)
    settings["lateral"] = settings["lateral"] or allow_lateral
    rows: list[ImageRow] = []
    for path in files:
        doubts: list[str] = []
        row: ImageRow = {"path": str(path), "label": None, "probability": None, "unreadable": None, "doubts": None}
        try:
            grey = grey_pixels(path, **settings, doubts=doubts)
        except UnreadableImageError as error:
            row["unreadable"] = str(error)
            sys.stderr.write(f"warning: {path} cannot be read: {error}\n")
        else:
            probability = probability_of_positive(
                compute(network_input(grey, description["preprocessing"])), description
            )
            positive = probability >= description["threshold"]
            row["label"], row["probability"] = description["positive"] if positive else negative, probability
        for doubt in doubts:
            sys.stderr.write(f"warning: {path}: {doubt}\n")
        row["doubts"] = "; ".join(doubts) or None
        rows.append(row)
    if as_csv:
        writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        sys.stderr.write(f"probability of {description['positive']}. {NOTICE}\n")
    else:
        _write_json(
            {
                "schema": PREDICTIONS_SCHEMA,
                "notice": NOTICE,
                "variant": description["variant"],
                "positive": description["positive"],
                "threshold": description["threshold"],
                "model_sha256": description["model"]["sha256"],
                "data_stamps": stamps_of(description["caveats"]),
                "caveats": description["caveats"],
                "images": rows,
            }
        )
    return 1 if any(row["unreadable"] for row in rows) else 0


def stamps_of(caveats: list[str]) -> list[str]:
    """Return the stamps of caveats, without repetition."""
    return list(dict.fromkeys(caveat.partition(":")[0] for caveat in caveats))


def _warn_of(description: Description) -> None:
    for caveat in description["caveats"]:
        sys.stderr.write(f"warning: {caveat}\n")


def _write_json(document: Mapping[str, object]) -> None:
    plain = not (sys.stdout.encoding or "").lower().startswith("utf")
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=plain, allow_nan=False) + "\n")


def emulator(proc: Path, machine: str) -> str | None:
    """Return the emulator that runs this process, detected from the `proc` folder; None if none is detected."""
    try:
        # QEMU emulates /proc/self, but not /proc/thread-self.
        program = (proc / "thread-self" / "exe").readlink().name
    except OSError:
        program = ""
    if program.startswith("qemu-"):
        return program
    try:
        cpu_info = (proc / "cpuinfo").read_text(errors="replace")
    except OSError:
        return None
    if "TCG" in cpu_info:
        return "QEMU"
    other = "vendor_id" if machine.startswith(("aarch64", "arm")) else "CPU implementer"
    return f"a processor other than {machine}" if other in cpu_info else None


def time_round(folder: Path, *, threads: int, batch_sizes: list[int], duration_s: float, seed: int) -> Round:
    """Return the durations of calls by batch size in seconds, and the memory of this process in bytes.

    Also the share of time that its threads waited for a processor.

    First opens the model and warms up, on random input. Raises BundleError on an emulated processor.
    """
    refuse_emulation()
    runtime_bytes = resident_bytes("VmRSS")
    description = read_description(folder)
    compute = open_model(checked_model(folder, description), description, threads)
    side_px = description["preprocessing"]["image_size_px"]
    rng = np.random.default_rng(seed)
    seconds: dict[str, list[float]] = {}
    ran_ns = waited_ns = 0
    for batch in batch_sizes:
        inputs = rng.standard_normal((batch, 3, side_px, side_px), dtype=np.float32)
        warm_s = time.perf_counter() + duration_s / 2
        for _ in range(WARMUP_CALLS):
            compute(inputs)
            if time.perf_counter() > warm_s:
                break
        before = scheduled_ns()
        seconds[str(batch)] = _durations(compute, inputs, duration_s)
        for thread, times_ns in scheduled_ns().items():
            ran_before_ns, waited_before_ns = before.get(thread, (0, 0))
            ran_ns += times_ns[0] - ran_before_ns
            waited_ns += times_ns[1] - waited_before_ns
    return {
        "seconds": seconds,
        "peak_bytes": resident_bytes("VmHWM"),
        "runtime_bytes": runtime_bytes,
        "model_sha256": description["model"]["sha256"],
        "threads": threads,
        "environment": environment(threads),
        "waited_share": waited_ns / (ran_ns + waited_ns) if ran_ns + waited_ns > 0 else None,
    }


def scheduled_ns() -> dict[str, tuple[int, int]]:
    """Return for each thread the time on a processor and in its queue in nanoseconds; empty except on Linux."""
    scheduled = {}
    for path in Path("/proc/self/task").glob("*/schedstat"):
        # A thread may end meanwhile.
        with contextlib.suppress(OSError):
            ran_ns, waited_ns = path.read_text().split()[:2]
            scheduled[path.parent.name] = int(ran_ns), int(waited_ns)
    return scheduled


def _durations(compute: Compute, inputs: Array, duration_s: float) -> list[float]:
    seconds: list[float] = []
    deadline_s = time.perf_counter() + duration_s
    while len(seconds) < MIN_CALLS or time.perf_counter() < deadline_s:
        started_s = time.perf_counter()
        compute(inputs)
        seconds.append(time.perf_counter() - started_s)
    return seconds


def refuse_emulation() -> None:
    """Raise BundleError on an emulated processor, whose times are not those of a device."""
    emulated_as = emulator(Path("/proc"), platform.machine())
    if emulated_as:
        raise BundleError(
            f"this processor is emulated ({emulated_as}): times measured here are not those of a device",
            "run it on the device itself",
        )


def resident_bytes(entry: str) -> int | None:
    """Return this process's resident memory in bytes, current (VmRSS) or peak (VmHWM); None except on Linux."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == entry:
            return int(value.split()[0]) * 1024
    return None


def environment(threads: int) -> dict[str, str]:
    """Return what times can depend on: versions, processor, threads; no host or user names."""
    return {
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "threads": str(threads),
    }


def processor_name() -> str:
    """Return the name of the board or processor, as far as the system reports it."""
    for path, is_named in (("/proc/device-tree/model", True), ("/proc/cpuinfo", False)):
        try:
            content = Path(path).read_text(errors="replace")
        except OSError:
            continue
        if is_named:
            return content.strip("\0\n")
        for line in content.splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def benchmark(
    folder: Path, *, threads: int, rounds: int, batch_sizes: list[int], duration_s: float, seed: int
) -> dict[str, object]:
    """Return a record like that of `chestx benchmark` for this model alone, without ratios.

    Every round is a separate process, because memory placement differs between processes and affects times.
    """
    started_s = time.perf_counter()
    refuse_emulation()
    description = read_description(folder)
    _warn_of(description)
    options = ["--threads", str(threads), "--duration", str(duration_s), "--seed", str(seed)]
    options += ["--batch-sizes", ",".join(map(str, batch_sizes))]
    rounds_run: list[Round] = []
    for number in range(rounds):
        sys.stderr.write(f"round {number + 1} of {rounds}\n")
        line = [sys.executable, str(Path(__file__).resolve()), "round", *options]
        done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise BundleError(f"round {number + 1} failed with code {done.returncode}", "see the reason above")
        rounds_run.append(json.loads(done.stdout))
    warnings = _warnings(rounds_run, batch_sizes)
    row, cost = _row(rounds_run, description, batch_sizes), _cost_row(rounds_run, description)
    return {
        "schema": RECORD_SCHEMA,
        "stamp": {
            "command": shlex.join([Path(__file__).name, "benchmark", "--rounds", str(rounds), *options]),
            "options": {"threads": threads, "rounds": rounds, "duration": duration_s, "seed": seed},
            "inputs": {description["model"]["file"]: description["model"]["sha256"]},
            "environment": {
                "chestx-cli": description["made_by"].rpartition(" ")[2],
                **rounds_run[0]["environment"],
            },
            "created": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
            "duration_s": round(time.perf_counter() - started_s, 3),
            "data_stamps": stamps_of(description["caveats"]),
        },
        "notes": [*warnings, *description["caveats"], NOTICE],
        "device": "cpu",
        "machine": rounds_run[0]["environment"]["processor"],
        "threads": threads,
        "rounds": rounds,
        "batch_sizes": batch_sizes,
        "baseline": None,
        "best_fp32_runtime": None,
        "rows": [row],
        "cost_rows": [cost],
        "warnings": warnings,
    }


def _row(rounds_run: list[Round], description: Description, batch_sizes: list[int]) -> dict[str, object]:
    batches = [_batch_times(rounds_run, batch) for batch in batch_sizes]
    first = batches[0]
    speedups = ("speedup_over_eager", "speedup_over_best_fp32")
    return {
        "variant": description["variant"],
        "runtime": RUNTIME,
        "latency_p50_ms": first["p50_ms"],
        "latency_p90_ms": first["p90_ms"],
        "latency_p99_ms": first["p99_ms"],
        "images_per_s": [part["images_per_s"] for part in batches],
        **dict.fromkeys([*speedups, *(f"{name}_interval" for name in speedups)]),
        "batches": batches,
        "model_sha256": description["cost"]["model_sha256"],
        "waited_share": _waited_share(rounds_run),
    }


def _waited_share(rounds_run: list[Round]) -> float | None:
    shares = [share for timing in rounds_run if (share := timing["waited_share"]) is not None]
    return float(np.median(shares)) if shares else None


def _batch_times(rounds_run: list[Round], batch: int) -> BatchTimes:
    rounds_ms = [1000 * np.asarray(timing["seconds"][str(batch)]) for timing in rounds_run]
    calls_ms = np.concatenate(rounds_ms)
    p50_ms, p90_ms, p99_ms = (float(np.percentile(calls_ms, at)) for at in (50, 90, 99))
    return {
        "p50_ms": p50_ms,
        "p90_ms": p90_ms,
        "p99_ms": p99_ms,
        "batch_size": batch,
        "calls": len(calls_ms),
        "images_per_s": 1000 * batch / p50_ms,
        "round_p50_ms": [float(np.median(calls)) for calls in rounds_ms],
    }


def _cost_row(rounds_run: list[Round], description: Description) -> dict[str, object]:
    # None where the system does not report them.
    memory_bytes = [
        (peak_bytes, peak_bytes - runtime_bytes)
        for timing in rounds_run
        if (peak_bytes := timing["peak_bytes"]) is not None and (runtime_bytes := timing["runtime_bytes"]) is not None
    ]
    peak, added = (np.median(memory_bytes, axis=0) / 1e6).tolist() if memory_bytes else (None, None)
    return {**description["cost"], "peak_memory_mb": peak, "added_memory_mb": added}


def _warnings(rounds_run: list[Round], batch_sizes: list[int]) -> list[str]:
    medians = [float(np.median(timing["seconds"][str(batch_sizes[0])])) for timing in rounds_run]
    sentences: list[str] = []
    spread, waited = max(medians) / min(medians), _waited_share(rounds_run) or 0.0
    facts = [f"the rounds differ by a factor of {spread:.1f}"] if spread > MOST_SPREAD else []
    if waited > MOST_WAITED:
        facts.append(f"the model waited {waited:.0%} of its time for a processor")
    if facts:
        sentences.append(f"NOISY: {', and '.join(facts)}: do not quote these times.")
    if len(rounds_run) == 1:
        sentences.append(
            "One round only: the scatter of these times is unknown. Use more --rounds before quoting them."
        )
    return sentences


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--threads", type=_count, default=processors(), help="processor threads; all by default")
    labelling = commands.add_parser("predict", parents=[shared], help="label images")
    labelling.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="an image file, or a folder of them")
    labelling.add_argument("--csv", action="store_true", help="write CSV instead of JSON")
    labelling.add_argument("--allow-lateral", action="store_true", help="take DICOM images that are lateral views")
    timing = argparse.ArgumentParser(add_help=False, parents=[shared])
    timing.add_argument(
        "--batch-sizes", type=_batch_sizes, default=[1, 16], metavar="N,...", help="images per call; 1,16 by default"
    )
    timing.add_argument("--duration", type=_seconds, default=1.0, help="seconds of calls per batch size and round")
    timing.add_argument("--seed", type=int, default=42, help="seed of the random input")
    whole = commands.add_parser("benchmark", parents=[timing], help="time the model, in rounds; write a JSON record")
    whole.add_argument("--rounds", type=_count, default=5, help="rounds, each in a process of its own; 5 by default")
    commands.add_parser("round", parents=[timing], help="one round of a benchmark, as chestx benchmark --host runs it")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("give a whole number of at least 1")
    return int(text)


def _batch_sizes(text: str) -> list[int]:
    return sorted({_count(part) for part in text.split(",")})


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError("give a number of more than 0")
    return seconds


def main() -> int:
    """Run the command line; return the exit code: 0 done, 1 failed, 2 usage, 130 interrupted."""
    # A path may have characters that stdout cannot encode, as for redirected output on Windows.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    typed = _parser().parse_args()
    folder = Path(__file__).resolve().parent
    try:
        if typed.command == "predict":
            kind = {"as_csv": typed.csv, "allow_lateral": typed.allow_lateral}
            return predict(folder, typed.images, threads=typed.threads, **kind)
        settings = {"threads": typed.threads, "batch_sizes": typed.batch_sizes, "duration_s": typed.duration}
        if typed.command == "round":
            _write_json(time_round(folder, seed=typed.seed, **settings))
        else:
            _write_json(benchmark(folder, rounds=typed.rounds, seed=typed.seed, **settings))
        return 0
    except BundleError as error:
        sys.stderr.write(f"error: {error.fact}\n" + (f"  {error.remedy}\n" if error.remedy else ""))
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except BrokenPipeError:
        # The output's reader has closed the pipe; the interpreter must not flush to it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
