"""Fixtures: small real images, and one small real study shared by many tests."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from chestx_cli.cli.app import app_for
from chestx_cli.inference import timing
from support.planned_study import write_plan

# The tiny backbone is a plugin; child processes of the tests, such as those that time models, must know it too.
PLUGINS = str(Path(__file__).parent / "support" / "plugins")
# On networks this small, threads cost more than they give.
os.environ["OMP_NUM_THREADS"] = "1"
# Worker processes of a parallel run have the plugins in it already.
PLAIN_PATH = os.pathsep.join(
    path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != PLUGINS
)
os.environ["PYTHONPATH"] = os.pathsep.join([PLUGINS, *PLAIN_PATH.split(os.pathsep)])
sys.path.insert(0, PLUGINS)

# Tests run beside each other, so that the models that they time wait for a processor.
MOST_WAITED = timing.MOST_WAITED
timing.MOST_WAITED = 1.0

APP = app_for(None)
IMAGE_SIZE_PX = 32
TINY = ("--backbone", "tiny", "--weights", "none", "--image-size", str(IMAGE_SIZE_PX), "--lr", "0.001")

# What help must not import.
HEAVY = (
    "torch",
    "torchvision",
    "pandas",
    "matplotlib",
    "sklearn",
    "scipy",
    "statsmodels",
    "onnx",
    "onnxruntime",
    "numpy",
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        """Return stdout as one JSON document."""
        document: dict[str, Any] = json.loads(self.out)
        return document


Chestx = Callable[..., Outcome]


def run_chestx(*words: object, env: dict[str, str] | None = None) -> Outcome:
    """Run a command in this process."""
    result = CliRunner().invoke(APP, [str(word) for word in words], env=env)
    return Outcome(code=result.exit_code, out=result.stdout, err=result.stderr)


@pytest.fixture(scope="session")
def chestx() -> Chestx:
    """Return the command line as a function."""
    return run_chestx


def draw_image(rng: np.random.Generator, *, bright: bool, side_px: int = 40) -> Image.Image:
    """Return noise, with a bright blob in the middle for the positive class."""
    pixels = rng.normal(90, 25, (side_px, side_px))
    if bright:
        third = side_px // 3
        pixels[third:-third, third:-third] += 70
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def write_images(folder: Path, *, n_normal: int = 32, n_pneumonia: int = 28, first: int = 0) -> Path:
    """Write an ImageFolder with names of the public paediatric set; every third patient has two images.

    Another number of the first patient gives other patients and other images.
    """
    rng = np.random.default_rng(7 + first)
    for label, n in (("NORMAL", n_normal), ("PNEUMONIA", n_pneumonia)):
        (folder / label).mkdir(parents=True)
        for index in range(n):
            patient = index - 1 if index % 3 == 1 else index
            patient += first
            name = f"IM-{patient:04d}-{index:04d}.png" if label == "NORMAL" else f"person{patient}_virus_{index}.png"
            draw_image(rng, bright=label == "PNEUMONIA").save(folder / label / name)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 60 small images; tests must not change it."""
    return write_images(tmp_path_factory.mktemp("images") / "data")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """Return a study on which every command has run; tests must not change it."""
    study = tmp_path_factory.mktemp("finished") / "study"
    at = ("--study", study)
    commands: list[tuple[object, ...]] = [
        ("train", data, *at, *TINY, "--epochs", 3, "--batch-size", 16),
        ("sensitivity", *at, "--amounts", "0.5,0.9"),
        ("prune", *at, "--method", "oneshot"),
        ("prune", *at, "--method", "iterative", "--steps", 2, "--finetune-epochs", 1, "--batch-size", 16),
        ("quantize", *at),
        ("evaluate", *at),
        ("benchmark", *at, "--rounds", 1, "--duration", 0.05),
        ("report", *at),
    ]
    for words in commands:
        outcome = run_chestx(*words)
        assert outcome.code == 0, f"{words}\n{outcome.out}\n{outcome.err}"
    return study


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> Path:
    """Return a study of the test's own: the finished one, linked; replace its files, never write into them."""
    own = tmp_path / "study"
    shutil.copytree(finished, own, copy_function=os.link)
    return own


@pytest.fixture
def fresh(tmp_path: Path, data: Path) -> Path:
    """Return a study that has a split and a baseline trained for one epoch."""
    own = tmp_path / "fresh"
    outcome = run_chestx("train", data, "--study", own, *TINY, "--epochs", 1, "--batch-size", 16)
    assert outcome.code == 0, outcome.err
    return own


@pytest.fixture(scope="session")
def planned(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[Path, Path, Outcome]:
    """Return a study file, the study over folds and seeds it made, and what the command left; do not change them."""
    folder = tmp_path_factory.mktemp("planned")
    path = write_plan(folder, data)
    outcome = run_chestx("study", path, "--study", folder / "study", "--jobs", "2", "--json")
    assert outcome.code == 0, outcome.err
    return path, folder / "study", outcome


@pytest.fixture
def own_planned(planned: tuple[Path, Path, Outcome], tmp_path: Path) -> tuple[Path, Path]:
    """Return a copy of the study file and its study, linked; replace its files, never write into them."""
    path, study, _ = planned
    shutil.copy(path, tmp_path / "study.toml")
    shutil.copytree(study, tmp_path / "study", copy_function=os.link)
    return tmp_path / "study.toml", tmp_path / "study"


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change a file's content without touching the file that it may be a link to."""
    content = change(path.read_bytes())
    path.unlink()
    path.write_bytes(content)


def lose_sensitivity(study: Path, variant: str) -> None:
    """Let the stored evaluation of a variant say that its sensitivity fell."""

    def fallen(content: bytes) -> bytes:
        document = json.loads(content)
        for guard in document["guards"]:
            if guard["measure"] == "sensitivity":
                guard.update(difference=-0.8, interval=[-0.95, -0.2], p=0.03, p_margin=1.0, state="fell")
        return json.dumps(document).encode()

    edit(study / "variants" / variant / "evaluation.test.json", fallen)


def tree(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder, to show that nothing has changed."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def plain_env() -> dict[str, str]:
    """Return the environment without the tests' plugins."""
    return {**os.environ, "PYTHONPATH": PLAIN_PATH}


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
