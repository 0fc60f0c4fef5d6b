"""A bundle reads DICOM as chestx does: the same pixels, refusals and doubts, with pydicom and without chestx."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chestx_cli.data.images.decoding import at_network_size, decode_grey
from chestx_cli.data.images.formats.refusals import UnreadableImageError
from chestx_cli.inference.bundles import SCRIPT
from chestx_cli.inference.device.image_reader import READER_FILE, image_reader
from chestx_cli.records.preprocessing import Preprocessing
from conftest import Chestx
from support.bundle_script import ENVIRONMENT, exported_baseline, run_script
from tools.reliability.dicom_matrix import dicom

FILM = np.random.default_rng(4).integers(0, 4096, (64, 48)).astype(np.uint16)
PLAIN: dict[str, Any] = {"BitsStored": 12, "HighBit": 11}
TWO: dict[str, Any] = {
    "WindowCenter": ("DS", ["1000", "2000"]),
    "WindowWidth": ("DS", ["800", "3000"]),
    "WindowCenterWidthExplanation": ("LO", ["NORMAL", "HARDER"]),
}
FILES: dict[str, dict[str, Any]] = {
    "plain": {},
    "windows": TWO,
    "monochrome1": {"PhotometricInterpretation": "MONOCHROME1", **TWO},
    "padded": {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 40, **TWO},
    "lateral": {"ViewPosition": "LL", **TWO},
    "hand": {"BodyPartExamined": "HAND", **TWO},
    "tomography": {"Modality": "CT", **TWO},
}
# Writes what the script makes of each file of a folder, with the settings of a preprocessing.
DRIVER = """
import json, runpy, sys
from pathlib import Path
script = runpy.run_path(sys.argv[1])
settings = script["decoding"]({"preprocessing": json.loads(sys.argv[2])})
found = {}
for path in sorted(Path(sys.argv[3]).iterdir()):
    try:
        found[path.name] = script["grey_pixels"](path, **settings).tolist()
    except script["UnreadableImageError"] as error:
        found[path.name] = str(error)
assert not {"chestx_cli", "torch"} & sys.modules.keys()
print(json.dumps(found))
"""


def write_files(folder: Path) -> Path:
    """Write one DICOM file of each kind into a folder, named without suffix."""
    folder.mkdir(parents=True)
    for name, elements in FILES.items():
        (folder / name).write_bytes(dicom(FILM, **PLAIN, **elements))
    return folder


@pytest.mark.parametrize("window", [None, "2", "harder"])
@pytest.mark.parametrize("lateral", [False, True])
def test_the_script_reads_dicom_as_chestx_does(tmp_path: Path, window: str | None, lateral: bool) -> None:
    folder = write_files(tmp_path / "films")
    shutil.copy(SCRIPT, tmp_path)
    (tmp_path / READER_FILE).write_bytes(image_reader())
    preprocessing = Preprocessing(image_size_px=32, window=window, lateral=lateral, resize="letterbox")
    words = [str(tmp_path / SCRIPT.name), json.dumps(vars(preprocessing)), str(folder)]
    done = subprocess.run(
        [sys.executable, "-I", "-c", DRIVER, *words], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    found = json.loads(done.stdout)
    expected: dict[str, Any] = {}
    for path in folder.iterdir():
        try:
            expected[path.name] = at_network_size(decode_grey(path, preprocessing)[0], preprocessing).tolist()
        except UnreadableImageError as error:
            expected[path.name] = error.detail
    assert found == expected
    assert isinstance(found["lateral"], str) != lateral
    assert found["tomography"] == "its Modality is CT"
    assert (found["plain"] == "none of its 0 windows and tables is number 2") == (window == "2")


def test_what_reads_images_is_of_the_oldest_python_that_the_script_names() -> None:
    content = image_reader().decode()
    ast.parse(content, feature_version=(3, 9))
    code = (
        "import sys\nsys.version_info = (3, 9)\nexec(compile(sys.stdin.read(), 'reader', 'exec'))\nprint(Reason.MASK)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], input=content, capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    assert done.stdout == "mask\n"


@pytest.fixture(scope="module")
def bundle(chestx: Chestx, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of the baseline; tests must not change it."""
    return exported_baseline(chestx, finished, tmp_path_factory.mktemp("exporting"))


def test_chestx_and_the_script_predict_the_same_of_dicom(chestx: Chestx, bundle: Path, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "films")
    (folder / "report").write_bytes(dicom(FILM, **PLAIN, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11"))
    done = run_script(bundle, "predict", folder, "--allow-lateral")
    assert done.returncode == 1
    by_script = {Path(row["path"]).name: row for row in json.loads(done.stdout)["images"]}
    assert "1 DICOM without an image" in done.stderr
    outcome = chestx("predict", folder, "--bundle", bundle, "--allow-lateral", "--show-paths", "--json")
    assert outcome.code == 1
    rows = {Path(row["path"]).name: row for row in outcome.json()["rows"]}
    assert rows.keys() == by_script.keys() == FILES.keys()
    for name, row in rows.items():
        (probability,) = row["probability"].values()
        if probability is None:
            assert name == "tomography"
            assert row["problem"].endswith(by_script[name]["unreadable"])
        else:
            assert by_script[name]["probability"] == pytest.approx(probability, abs=1e-6)
    assert by_script["hand"]["doubts"].endswith("; doubt: DICOM whose BodyPartExamined is not the chest")
    assert by_script["plain"]["doubts"] == "doubt: DICOM without Modality"


def test_without_pydicom_the_script_names_what_to_install(bundle: Path, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "films")
    (folder / "film.dcm").write_bytes(dicom(FILM, **PLAIN))
    code = (
        "import sys, runpy\nsys.modules['pydicom'] = None\n"
        f"sys.argv[1:] = ['predict', {str(folder)!r}]\n"
        f"runpy.run_path({str(bundle / SCRIPT.name)!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False, env=ENVIRONMENT
    )
    assert done.returncode == 1, done.stderr
    problems = {row["unreadable"] for row in json.loads(done.stdout)["images"]}
    line = "python -m pip install pydicom pylibjpeg pylibjpeg-openjpeg"
    assert problems == {f"DICOM, which needs pydicom: {line}"}
