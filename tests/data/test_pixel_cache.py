"""The pixel cache: built while splitting, complete or rebuilt, shared by processes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from chestx_cli.core.progress import SilentReporter
from chestx_cli.data.images import decoding, pixel_cache
from chestx_cli.data.images.pixel_cache import open_pixels, sums_of
from chestx_cli.records.preprocessing import Preprocessing
from chestx_cli.store.directory import Study
from conftest import Chestx

SIZE = Preprocessing(image_size_px=33)


class Listener(SilentReporter):
    """Hears warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture(scope="module")
def split_once(chestx: Chestx, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a study that has a split, with pixels of an odd size; tests must not change it."""
    study = tmp_path_factory.mktemp("split") / "s"
    outcome = chestx("split", data, "--study", study, "--image-size", SIZE.image_size_px)
    assert outcome.code == 0, outcome.err
    return study


@pytest.fixture
def made(split_once: Path, tmp_path: Path) -> Study:
    """Return a copy of such a study."""
    return Study(Path(shutil.copytree(split_once, tmp_path / "s")))


def the_cache(study: Study) -> Path:
    (cache,) = study.cache.glob("pixels-*.npy")
    return cache


def test_nothing_is_decoded_after_the_split(made: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    split = made.read_split()
    fresh = [
        decoding.load_pixels(split.root / path, SIZE, sha256=sha256, image_id="img-000000")
        for path, sha256 in zip(split.paths, split.image_sha256, strict=True)
    ]

    def refuse(path: Path) -> None:
        raise AssertionError(path)

    monkeypatch.setattr(decoding, "decode_grey", refuse)
    kept = open_pixels(made, split, SIZE, SilentReporter())
    assert (kept == np.stack(fresh)).all()
    assert np.load(the_cache(made)).shape == (60, 33, 33)


def flip(position: float) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        at = round(position * (len(content) - 1))
        return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]

    return change


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "first pixel": lambda content: content[:128] + bytes([content[128] ^ 1]) + content[129:],
    "a byte in the middle": flip(0.5),
    "a byte of the sums": flip(1.0),
    "a hole": lambda content: content[:5000] + bytes(4096) + content[9096:],
    "cut": lambda content: content[:-100],
    "longer": lambda content: content + bytes(480),
    "empty": lambda _: b"",
    "two images swapped": lambda content: content[:128] + content[1217:2306] + content[128:1217] + content[2306:],
}


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_found_and_made_again(
    made: Study, damage: str, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(pixel_cache, "ALWAYS_CHECKED_BYTES", 1000)
        pixel_cache._note_checked(the_cache(made))
    split, cache = made.read_split(), the_cache(made)
    whole, told = cache.read_bytes(), cache.stat()
    cache.write_bytes(DAMAGE[damage](whole))
    # As if nothing had been written.
    os.utime(cache, ns=(told.st_atime_ns, told.st_mtime_ns))
    listener = Listener()
    open_pixels(made, split, SIZE, listener)
    assert len(listener.warnings) == 1
    assert "is damaged; rebuilding it" in listener.warnings[0]
    assert cache.read_bytes() == whole
    open_pixels(made, split, SIZE, listener)
    assert len(listener.warnings) == 1


def test_a_large_cache_is_summed_once(made: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_cache, "ALWAYS_CHECKED_BYTES", 1000)
    split = made.read_split()
    open_pixels(made, split, SIZE, SilentReporter())

    def refuse(_: object) -> None:
        raise AssertionError("summed again")

    monkeypatch.setattr(pixel_cache, "sums_of", refuse)
    open_pixels(made, split, SIZE, SilentReporter())
    the_cache(made).touch()
    with pytest.raises(AssertionError, match="summed again"):
        open_pixels(made, split, SIZE, SilentReporter())


def test_sums_tell_every_changed_byte() -> None:
    rng = np.random.default_rng(0)
    for side in (8, 9, 31):
        chunk = rng.integers(0, 256, (3, side, side), dtype=np.uint8)
        before = sums_of(chunk)
        for at in range(side * side):
            changed = chunk.copy()
            changed[1].reshape(-1)[at] ^= 128
            assert (sums_of(changed) != before).tolist() == [False, True, False]


def test_two_processes_make_one_cache(made: Study) -> None:
    whole = hashlib.sha256(the_cache(made).read_bytes()).hexdigest()
    the_cache(made).unlink()
    program = (
        "import sys; from pathlib import Path; from chestx_cli.store.directory import Study\n"
        "from chestx_cli.core.progress import SilentReporter; from chestx_cli.data.images.pixel_cache import *\n"
        "from chestx_cli.records.preprocessing import Preprocessing\n"
        "study = Study(Path(sys.argv[1]))\n"
        "print(int(open_pixels(study, study.read_split(), Preprocessing(image_size_px=33), SilentReporter()).sum()))"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", program, str(made.root)], stdout=subprocess.PIPE) for _ in range(2)
    ]
    said = {child.communicate()[0] for child in children}
    assert [child.returncode for child in children] == [0, 0]
    assert len(said) == 1
    assert hashlib.sha256(the_cache(made).read_bytes()).hexdigest() == whole
    assert [path.name for path in made.cache.glob("*.npy")] == [the_cache(made).name]
