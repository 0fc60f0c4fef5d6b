"""Scanning images: same results in worker processes as in this one, and errors reported from there."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from chestx_cli.core.errors import ChestxError, StorageError
from chestx_cli.core.machine import available_threads
from chestx_cli.core.worker import Beside, beside
from chestx_cli.data import scanning
from chestx_cli.data.images.decoding import at_network_size, decode_grey
from chestx_cli.data.images.pixel_cache import sums_of, write_pixels
from chestx_cli.data.scanning import Scan, scan_images, scratch_file
from chestx_cli.data.sources.folders import read_folder
from chestx_cli.data.sources.listing import Listing, find_images
from chestx_cli.records.preprocessing import Preprocessing
from conftest import write_images

PREPROCESSING = Preprocessing(image_size_px=32)


@pytest.fixture
def listing(tmp_path: Path) -> Listing:
    """More than one chunk of images, with refusals of each kind in between."""
    data = tmp_path / "data"
    write_images(data, n_normal=40, n_pneumonia=40)
    (data / "NORMAL" / "a-broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    (data / "PNEUMONIA" / "zero.jpg").touch()
    (data / "PNEUMONIA" / "näme \udcff.png").write_bytes(b"BM")
    found = find_images(data, leave_out=tmp_path / "s")
    hashes = [hashlib.sha256((data / path).read_bytes()).hexdigest() for path in found.paths]
    hashes[7] = "0" * 64
    return Listing(root=data, layout="", paths=found.paths, labels=found.labels, sha256=tuple(hashes))


def scanned(listing: Listing, folder: Path) -> tuple[Scan, bytes, np.ndarray]:
    """Return what is found, the cache that is written, and a copy of the thumbnails."""
    folder.mkdir()
    advanced: list[int] = []
    with write_pixels(folder, 32) as writer, scratch_file(folder) as scratch:
        scan = scan_images(listing, PREPROCESSING, writer, scratch, advanced.append)
        writer.keep(folder / "kept.npy")
        thumbs = np.array(scan.thumbs)
    assert sum(advanced) == len(listing.paths)
    return scan, (folder / "kept.npy").read_bytes(), thumbs


def test_processes_find_what_this_one_finds(listing: Listing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, kept_here, thumbs_here = scanned(listing, tmp_path / "here")
    monkeypatch.setattr(scanning, "PROCESSES_FROM_IMAGES", 1)
    started: list[str] = []

    def counted(module: str, *words: str, what: str) -> AbstractContextManager[Beside]:
        started.append(module)
        return beside(module, *words, what=what)

    monkeypatch.setattr(scanning, "beside", counted)
    there, kept_there, thumbs_there = scanned(listing, tmp_path / "there")
    assert started == ["chestx_cli.data.scanning"] * min(available_threads(), scanning.MAX_PROCESSES)
    assert len(here.facts) == 79
    assert there.facts == here.facts
    assert list(there.rows) == list(here.rows)
    assert {row: str(error) for row, error in there.refused.items()} == {
        row: str(error) for row, error in here.refused.items()
    }
    assert sorted(error.reason for error in there.refused.values()) == ["bad-name", "damaged", "empty", "other-hash"]
    assert kept_there == kept_here
    assert np.array_equal(thumbs_there, thumbs_here)
    assert np.array_equal(there.sums, here.sums)


def words_for(root: Path | str) -> tuple[str, ...]:
    """Return the words of a process that looks at images below a folder and can put them nowhere."""
    places = {"path": "/nowhere/cache", "header_bytes": 128, "side_px": 32}
    return str(root), json.dumps(places), json.dumps({"image_size_px": 32}), "true"


def test_gaps_of_refused_images_are_closed(listing: Listing, tmp_path: Path) -> None:
    scan, kept, _ = scanned(listing, tmp_path / "s")
    pixels = np.load(tmp_path / "s" / "kept.npy")
    expected = [at_network_size(decode_grey(listing.root / listing.paths[row])[0], PREPROCESSING) for row in scan.rows]
    assert np.array_equal(pixels, np.stack(expected))
    assert np.array_equal(scan.sums, sums_of(pixels))
    assert kept.endswith(sums_of(pixels).tobytes())
    assert len(kept) == 128 + pixels.nbytes + scan.sums.nbytes


def test_a_cache_that_cannot_be_written_is_told(listing: Listing) -> None:
    with (
        beside("chestx_cli.data.scanning", *words_for(listing.root), what="decodes images") as process,
        pytest.raises(StorageError, match="/nowhere"),
    ):
        process.ask([0, [(listing.paths[0], None, None)]])


def test_a_cache_that_is_gone_is_told_and_not_made_again(listing: Listing, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    with write_pixels(tmp_path / "s", 32) as writer, scratch_file(tmp_path / "s") as scratch:
        Path(writer.places.path).unlink()
        with pytest.raises(StorageError, match=str(tmp_path / "s")):
            scan_images(listing, PREPROCESSING, writer, scratch, lambda _: None)
        assert not Path(writer.places.path).exists()


def test_a_process_that_is_killed_is_told(listing: Listing) -> None:
    words = words_for(listing.root)
    asked = [0, [(listing.paths[0], None, None)]]
    with beside("chestx_cli.data.scanning", *words, what="decodes images") as process:
        os.kill(process.process.pid, signal.SIGKILL)
        with pytest.raises(ChestxError, match="the process that decodes images ended with code -9"):
            process.ask(asked)


def test_want_of_memory_there_is_want_of_memory_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hungry.py").write_text(
        "from chestx_cli.core.worker import answer\n"
        "def eat(question):\n"
        "    if question == 'eat':\n"
        "        raise MemoryError\n"
        "    return question, [memoryview(b'and'), memoryview(b'more')]\n"
        "answer(eat)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with beside("hungry", what="eats") as process:
        with pytest.raises(MemoryError):
            process.ask("eat")
        assert process.ask({"a": [1, None]}) == ({"a": [1, None]}, b"andmore")
        assert json.dumps(process.ask("ä\udcff")[0]) == json.dumps("ä\udcff")


def test_a_process_that_cannot_be_started_and_one_that_fails_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        beside("chestx_cli.data.scanning", *words_for("/"), what="decodes images") as process,
        pytest.raises(ChestxError, match="decodes images ended with code 1: ValueError: not enough values"),
    ):
        process.ask(["one word"])
    monkeypatch.setattr(sys, "executable", "/nowhere")
    with (
        pytest.raises(ChestxError, match="cannot start a process that decodes images: No such file"),
        beside("chestx_cli.data.scanning", *words_for("/"), what="decodes images"),
    ):
        pass


@pytest.mark.parametrize("processes_from", [1, scanning.PROCESSES_FROM_IMAGES])
def test_nothing_readable_in_a_chunk_is_told_image_by_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes_from: int
) -> None:
    monkeypatch.setattr(scanning, "PROCESSES_FROM_IMAGES", processes_from)
    data = write_images(tmp_path / "data", n_normal=16, n_pneumonia=16)
    (data / "PNEUMONIA" / "z-last.png").touch()
    found = find_images(data, leave_out=tmp_path / "s")
    scan, kept, _ = scanned(found, tmp_path / "s")
    assert {row: error.reason for row, error in scan.refused.items()} == {32: "empty"}
    assert len(scan.facts) == 32
    assert len(kept) > 32 * 32 * 32


def test_a_linked_folder_that_may_not_be_asked_is_an_error_and_a_dangling_link_is_none(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "data" / "circle.png").symlink_to(tmp_path / "data" / "circle.png")
    (tmp_path / "data" / "circle").symlink_to(tmp_path / "data" / "circle")
    found, _ = read_folder(tmp_path / "data", leave_out=tmp_path / "s")
    assert found.entries == ["circle", "circle.png", "nowhere"]
    (tmp_path / "data" / "long").symlink_to("n" * 300)
    with pytest.raises(StorageError, match="File name too long"):
        read_folder(tmp_path / "data", leave_out=tmp_path / "s")
