"""All kinds of image files by format, depth, polarity, compression and container: correct pixels or a refusal."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from chestx_cli.data.images.formats.refusals import Reason, UnreadableImageError
from chestx_cli.inference.bundles import SCRIPT
from chestx_cli.inference.device.image_reader import READER_FILE, image_reader
from tools.reliability.dicom_matrix import DICOM
from tools.reliability.image_matrix import RASTERS, Case
from tools.reliability.registry import Setting
from tools.reliability.results import MAX_FAILURES, Figure

if TYPE_CHECKING:
    from tools.reliability.image_matrix import Grey

SHORT = ("BMP", "WebP")
CRITERION = (
    "the grey values that its standard prescribes, computed without chestx, or the expected refusal code; a "
    "bundle's script agrees"
)


CONTAINERS = {**RASTERS, **DICOM}


def measure(setting: Setting) -> Sequence[Figure]:
    """Decode every case, grouped by container."""
    names = setting.choose(short=SHORT, full=tuple(CONTAINERS))
    return [_figure(name, list(CONTAINERS[name]()), setting.work) for name in names]


def _figure(container: str, cases: Sequence[Case], folder: Path) -> Figure:
    started_s = time.perf_counter()
    script = script_of_bundle(folder)
    failures = [failure for case in cases if (failure := failure_of(case, folder, script))]
    refused = sum(isinstance(expected_here(case).expected, Reason) for case in cases)
    return Figure(
        test=f"images by format, depth, polarity and compression: {container} ({refused:,} refused)",
        passed=len(cases) - len(failures),
        total=len(cases),
        criterion=CRITERION,
        seconds=time.perf_counter() - started_s,
        failures=tuple(failures[:MAX_FAILURES]),
    )


def expected_here(case: Case) -> Case:
    """Return a case with the result expected on this machine: refused as unsupported without its decoder."""
    lacks = case.modules and all(importlib.util.find_spec(module) is None for module in case.modules)
    return replace(case, expected=Reason.UNSUPPORTED) if lacks else case


def script_of_bundle(folder: Path) -> ModuleType:
    """Return the script of a bundle as a module; it is written to a folder, with the module that reads images."""
    path = folder / SCRIPT.name
    path.write_bytes(SCRIPT.read_bytes())
    (folder / READER_FILE).write_bytes(image_reader())
    spec = importlib.util.spec_from_file_location("script_of_bundle", path)
    assert spec is not None  # noqa: S101 - it is a Python file
    assert spec.loader is not None  # noqa: S101 - as above
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def failure_of(case: Case, folder: Path, script: ModuleType) -> str:
    """Return the fault in decoding a case, or in a bundle's prediction for it; empty if there is none."""
    import numpy as np

    from chestx_cli.data.images.decoding import at_network_size, decode_grey
    from chestx_cli.records.preprocessing import Preprocessing

    path = folder / "image"
    path.write_bytes(case.content)
    preprocessing = Preprocessing(value_bits=case.value_bits, image_size_px=32)
    found: Grey | Reason
    try:
        grey = decode_grey(path, preprocessing)[0]
        found, small = np.asarray(grey), at_network_size(grey, preprocessing)
    except UnreadableImageError as error:
        found, small = error.reason, None
    if failure := expected_here(case).failure(found):
        return failure
    try:
        by_script = script.grey_pixels(path, 32, case.value_bits)
    except script.UnreadableImageError:
        return "" if small is None else f"{case.name}: refused by the bundle's script"
    same = small is not None and np.array_equal(by_script, small)
    return "" if same else f"{case.name}: other pixels by the bundle's script"
