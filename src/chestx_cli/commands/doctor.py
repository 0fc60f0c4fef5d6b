"""`chestx doctor`: hardware and software that affect times and results, and what is missing."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.compression.quantization.target_cpus import ANY_CPU, PROCESSORS, TARGET_CPUS
from chestx_cli.core.command import Run, stage
from chestx_cli.core.errors import ChestxError
from chestx_cli.core.machine import (
    INSTRUCTIONS,
    available_bytes,
    available_threads,
    environment,
    gpu_names,
    has_exact_products,
    instructions,
    processor_name,
)
from chestx_cli.core.shared_options import StudyDir
from chestx_cli.inference.runtimes import RUNTIMES
from chestx_cli.networks.devices import resolve_device, resolve_precision
from chestx_cli.networks.weights.pretrained import IMAGENET, find_weights
from chestx_cli.records.commands import DoctorRecord, DoctorRow
from chestx_cli.reporting.answers import of_doctor

if TYPE_CHECKING:
    from collections.abc import Iterator

GIB = 2**30
# Less may not suffice: a pixel cache and the checkpoints of one ResNet50 take about 2 GiB.
FEW_FREE_BYTES = 5 * GIB
# Longer names of GPUs would make the table wider than 80 columns.
MAX_NAME = 26
NEEDED = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime"}
BACKBONE = "resnet50"


@dataclass(frozen=True, kw_only=True)
class Extra:
    """An optional package, the extra that installs it, and what needs it."""

    name: str
    package: str
    what: str
    use: str
    # Whether this Python has the same in its standard library.
    is_in_python: bool = False


# Besides runtimes, which say by themselves what they need, and decoders.
EXTRAS = (
    Extra(name="dicom-out", package="highdicom", what="DICOM results", use="chestx predict --dicom-out"),
    Extra(name="heatmap", package="captum", what="Heatmaps", use="chestx predict --heatmap"),
    Extra(name="parquet", package="pyarrow", what="Parquet", use="manifests in Parquet"),
    Extra(name="ray", package="ray", what="Ray", use="chestx study --ray"),
    Extra(name="notebook", package="ipywidgets", what="ipywidgets", use="progress bars in notebooks"),
    Extra(
        name="zstd",
        package="zstandard",
        what="zstd",
        use="chestx export --zstd",
        is_in_python=sys.version_info >= (3, 14),
    ),
)


@stage(examples=("chestx doctor",), answer=of_doctor)
def doctor(run: Run, *, study: StudyDir = Path("study")) -> DoctorRecord:
    """Check this machine and installation: what is missing?

    Nothing is changed and nothing is sent. The exit code is 1 if a required component is missing.
    """
    with run.reporter.progress("Importing what chestx needs", None):
        reasons = {package: _fault_of(package) for package in NEEDED}
    device = precision = on_cpu = None
    if reasons["torch"] is None:
        device = resolve_device("auto")
        precision, on_cpu = resolve_precision("auto", device), resolve_precision("auto", "cpu")
    versions = environment()
    known = instructions()
    rows = (
        *_packages(versions, reasons),
        *_optional(),
        *_processor(on_cpu),
        _gpu(device),
        *_space(study),
        _weights(),
    )
    return DoctorRecord(
        stamp=run.stamp(),
        notes=tuple(f"{NEEDED[package]}: {reason}" for package, reason in reasons.items() if reason),
        processor=processor_name(),
        threads=available_threads(),
        instructions=None if known is None else tuple(name for name in INSTRUCTIONS if name in known),
        training_precision=precision,
        training_device=device,
        versions=versions,
        rows=rows,
    )


def _fault_of(package: str) -> str | None:
    """Return why a package cannot be imported; None if it can."""
    try:
        importlib.import_module(package)
    # A library that does not fit the system may raise any error.
    except Exception as error:
        return f"{type(error).__name__} in importing {package}"
    return None


def _row(what: str, state: str, meaning: str, *, remedy: str = "", optional: bool = True) -> DoctorRow:
    """Return a row; a component with a remedy is missing."""
    return DoctorRow(
        what=what, state=state, meaning=meaning, is_missing=bool(remedy), is_optional=optional, remedy=remedy
    )


def _packages(versions: dict[str, str], reasons: dict[str, str | None]) -> Iterator[DoctorRow]:
    yield _row("chestx", versions["chestx-cli"], f"Python {platform.python_version()}")
    uses = {"torch": "trains, runs FP32 variants", "onnxruntime": "runs INT8 variants"}
    for package, name in NEEDED.items():
        reason = reasons[package]
        remedy = "" if reason is None else f"pip install --force-reinstall {package}"
        yield _row(name, versions[package], uses[package] if reason is None else reason, remedy=remedy, optional=False)


def _optional() -> Iterator[DoctorRow]:
    for name, runtime in RUNTIMES.items():
        if runtime.extra is not None:
            remedy = "" if runtime.installed else f"pip install 'chestx-cli[{runtime.extra}]'"
            state = "here" if runtime.installed else "missing"
            yield _row(name, state, "one more runtime to benchmark", remedy=remedy)
    has_gdcm, has_jpeg_ls = (importlib.util.find_spec(name) is not None for name in ("gdcm", "jpeg_ls"))
    yield _row(
        "DICOM decoders",
        "all" if has_gdcm else "gdcm is missing",
        "all compressed files are read" if has_gdcm else f"JPEG lossless{'' if has_jpeg_ls else ', JPEG-LS'} refused",
        remedy="" if has_gdcm else "pip install 'chestx-cli[dicom]'",
    )
    for extra in EXTRAS:
        is_here = extra.is_in_python or importlib.util.find_spec(extra.package) is not None
        remedy = "" if is_here else f"pip install 'chestx-cli[{extra.name}]'"
        row = _row(extra.what, "here" if is_here else "missing", extra.use, remedy=remedy)
        yield replace(row, extra=extra.name)


def _processor(precision: str | None) -> Iterator[DoctorRow]:
    usable, all_of_them = available_threads(), os.cpu_count() or 1
    state = f"{usable}" if usable == all_of_them else f"{usable} of {all_of_them}"
    yield _row("Threads", state, "all are used; --threads takes fewer")
    known = instructions()
    has = None if known is None else [name for name in ("AVX2", "AVX512", "AMX") if name in known]
    yield _row(
        "Instructions",
        "unknown" if has is None else ", ".join(has) or "none of these",
        "no AVX2: times are far longer" if has is not None and "AVX2" not in has and _is_x86() else "–",
    )
    if precision is not None:
        is_fast = precision == "bf16"
        yield _row("BF16", "yes" if is_fast else "no", f"training runs in {precision.upper()} on the CPU")
    exact = has_exact_products()
    meaning = "INT8 sums are exact with 8 bits" if exact else "keep --target-cpu any (7 bits)"
    yield _row("VNNI" if _is_x86() else "INT8 sums", "yes" if exact else "no", meaning)
    found = next((name for name in PROCESSORS if name in (known or ())), None)
    share = TARGET_CPUS[ANY_CPU].times.get(found) if found else None
    meaning = (
        "not measured on such a processor"
        if found is None or share is None
        else f"static: about {share:.0%} of FP32's time {PROCESSORS[found]}"
    )
    yield _row("INT8", found or "unknown", meaning)


def _is_x86() -> bool:
    return platform.machine().lower() in {"x86_64", "amd64"}


def _gpu(device: str | None) -> DoctorRow:
    names = gpu_names()
    if not names and device != "cuda":
        return _row("GPU", "none", "training runs on the CPU")
    state = ", ".join(names)[:MAX_NAME] or "yes"
    if device == "cuda":
        return _row("GPU", state, "training runs on it")
    return _row("GPU", state, "torch cannot use it", remedy="install a CUDA build of torch and its driver")


def _space(study: Path) -> Iterator[DoctorRow]:
    free = available_bytes()
    if free is not None:
        yield _row("Memory", f"{free / GIB:.0f} GiB free", "images need not fit in it")
    there = next(folder for folder in (study.absolute(), *study.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    few = free < FEW_FREE_BYTES
    yield _row(
        "Disk",
        f"{free / GIB:.0f} GiB free",
        "at --study",
        remedy="free some space, or choose another place with --study" if few else "",
    )


def _weights() -> DoctorRow:
    try:
        weights = find_weights(BACKBONE, IMAGENET, fetch=False)
    except ChestxError:
        weights = None
    remedy = "" if weights else "chestx train --fetch downloads them once; --weights none needs none"
    state = f"{BACKBONE} {'here' if weights else 'missing'}"
    return _row("ImageNet", state, "pretrained weights", remedy=remedy)
