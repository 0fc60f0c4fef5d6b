"""The wheel and the source distribution: complete, and usable in an environment with only the libraries."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import chestx_cli
from conftest import plain_env

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the wheel and the source distribution of this tree."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=ROOT, check=True, capture_output=True
    )
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, source


def test_the_wheel_holds_the_package_whole_and_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    package = ROOT / "src"
    files = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    assert names == {name for name in files if "__pycache__" not in name and not name.endswith(".pyc")}


def test_the_source_distribution_builds_the_same_and_holds_no_study(built: tuple[Path, Path], tmp_path: Path) -> None:
    with tarfile.open(built[1]) as source:
        source.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    assert {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml"} <= {path.name for path in unpacked.iterdir()}
    assert not {"study", "demo", "data"} & {path.name for path in unpacked.iterdir()}
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=unpacked,
        check=True,
        capture_output=True,
    )
    (again,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(again) as one, zipfile.ZipFile(built[0]) as other:
        assert {info.filename: info.CRC for info in one.infolist()} == {
            info.filename: info.CRC for info in other.infolist()
        }


def test_an_installed_wheel_works(built: tuple[Path, Path], tmp_path: Path) -> None:
    """In a new environment: its own chestx, and the libraries of this one."""
    venv.create(tmp_path / "env", symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", built[0]],
        check=True,
        capture_output=True,
    )
    (packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    env = {key: value for key, value in plain_env().items() if key != "PYTHONPATH"}

    def output(*words: str | Path) -> str:
        ran = subprocess.run(words, cwd=tmp_path, env=env, check=True, capture_output=True, text=True)
        return ran.stdout.strip()

    where = output(python, "-c", "import chestx_cli; print(chestx_cli.__file__)")
    assert Path(where).is_relative_to(packages)
    chestx = python.with_name("chestx")
    assert output(chestx, "--version") == f"chestx {chestx_cli.__version__}"
    draw = (
        "import sys; from pathlib import Path; from chestx_cli.data.synthetic.sets import write_synthetic_set as draw; "
    )
    output(python, "-c", f"{draw}draw(Path('data'), images=40, seed=1, size_px=64)")
    assert "Next: chestx train" in output(chestx, "split", "data")


def test_versions_and_limits_agree_in_all_files() -> None:
    """The citation has the package's version; the image and the workflow have its limits on torch."""
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {chestx_cli.__version__}\n" in citation
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    limits = {word for word in project["dependencies"] if re.match(r"torch(vision)?[><]", word)}
    assert len(limits) == 2
    for file in ("Dockerfile", ".github/workflows/ci.yml", "docs/start.md"):
        text = (ROOT / file).read_text(encoding="utf-8")
        assert {f"'{limit}'" for limit in limits} <= set(re.findall(r"'torch[^']*'", text)), file
