"""Tar shards: read in order, divided like a folder of the same images, and errors that name fault and place."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chestx_cli.core.errors import DataError
from chestx_cli.data import scanning, streams
from chestx_cli.data.images.places import Member, place_of, read_image
from chestx_cli.data.sources.listing import Listing, find_images
from chestx_cli.data.sources.manifest_files import Wish
from chestx_cli.records.preprocessing import Preprocessing
from chestx_cli.store.directory import Study
from conftest import IMAGE_SIZE_PX, Chestx
from support.shards import write_shards, write_tar

SIZE = ("--image-size", IMAGE_SIZE_PX)
N, P = ("NORMAL", "PNEUMONIA")


def found(data: Path, *, resplit: bool = False) -> Listing:
    return find_images(data, leave_out=data / "study", wish=Wish(resplit=resplit))


def png(data: Path, label: str = N, number: int = 0) -> bytes:
    return sorted((data / label).iterdir())[number].read_bytes()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return write_shards(data, tmp_path_factory.mktemp("shards") / "shards")


def test_one_thread_decodes_small_images_and_all_decode_films(
    shards: Path, chestx: Chestx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "available_threads", lambda: 4)
    study = tmp_path / "study"
    assert chestx("split", shards, "--study", study).code == 0
    split = Study(study).read_split()
    assert split.spans is not None
    films = replace(split, spans=split.spans + np.array([0, streams.SMALL_FILE_BYTES]))
    threads = [streams.DecodedImages(of, Preprocessing()).threads for of in (split, films)]
    assert threads == [1, 4]


def test_images_of_shards_are_listed_in_their_order_with_where_they_lie(shards: Path, data: Path) -> None:
    listing = found(shards)
    files = sorted(data.rglob("*.png"))
    assert [Path(path).name for path in listing.paths] == [file.name for file in files]
    assert listing.paths[0].startswith("films-0000.tar/IM-0000")
    assert list(listing.labels) == [file.parent.name for file in files]
    place = place_of(listing, 20)
    assert isinstance(place, Member)
    assert place.shard.name == "films-0001.tar"
    assert [read_image(place_of(listing, row)) for row in range(60)] == [file.read_bytes() for file in files]


def test_a_split_of_shards_is_that_of_the_folder(shards: Path, data: Path, chestx: Chestx, tmp_path: Path) -> None:
    for name, source in (("a", data), ("b", shards)):
        assert chestx("split", source, "--study", tmp_path / name, *SIZE).code == 0
    a, b = (pd.read_csv(tmp_path / name / "split.csv") for name in "ab")
    same = ["image_id", "label", "group", "patient", "patient_from", "split", "sha256", "size_bytes", "width_px"]
    pd.testing.assert_frame_equal(a[same], b[same])
    assert sorted(set(b.columns) - set(a.columns)) == ["shard_offset"]
    with tarfile.open(shards / "films-0000.tar") as tar:
        assert b["shard_offset"][1] == tar.getmembers()[2].offset_data
    assert (tmp_path / "a" / "duplicates.csv").read_bytes() == (tmp_path / "b" / "duplicates.csv").read_bytes()
    caches = [next((tmp_path / name / "cache").glob("pixels-*.npy")).read_bytes() for name in "ab"]
    assert caches[0] == caches[1]
    again = chestx("split", shards, "--study", tmp_path / "b", *SIZE)
    assert "already done" in again.err


def test_processes_that_decode_find_the_members_too(
    shards: Path, chestx: Chestx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        assert chestx("split", shards, "--study", tmp_path / name, *SIZE).code == 0
        monkeypatch.setattr(scanning, "PROCESSES_FROM_IMAGES", 1)
    assert (tmp_path / "a" / "split.csv").read_bytes() == (tmp_path / "b" / "split.csv").read_bytes()


def test_a_cache_that_is_gone_is_read_again_from_the_shards(shards: Path, chestx: Chestx, tmp_path: Path) -> None:
    assert chestx("split", shards, "--study", tmp_path, *SIZE).code == 0
    cache = next((tmp_path / "cache").glob("pixels-*.npy"))
    before = cache.read_bytes()
    cache.unlink()
    assert (
        chestx("train", "--study", tmp_path, "--backbone", "tiny", "--weights", "none", "--epochs", 1, *SIZE).code == 0
    )
    assert cache.read_bytes() == before


def test_patients_come_from_the_json_of_the_samples(data: Path, chestx: Chestx, tmp_path: Path) -> None:
    shards = write_shards(data, tmp_path / "shards", as_json=True)
    listing = found(shards)
    assert listing.groups is not None
    assert listing.groups[-1] == Path(listing.paths[-1]).stem.split("_")[0]
    assert chestx("split", shards, "--study", tmp_path / "study", *SIZE).code == 0
    split = Study(tmp_path / "study").read_split()
    parts = pd.DataFrame({"group": listing.groups, "part": split.parts}).groupby("group")["part"].nunique()
    assert parts.max() == 1


def test_shards_named_after_parts_keep_them_unless_they_are_divided_again(data: Path, tmp_path: Path) -> None:
    for name, label in (("train", "images"), ("test", "more")):
        write_shards(data, tmp_path / label, size=100, name=name)
        shutil.move(str(tmp_path / label / f"{name}-0000.tar"), tmp_path / f"{name}-0000.tar")
    parts = found(tmp_path).parts
    assert parts is not None
    assert (parts[0], parts[-1]) == ("test", "train")
    assert found(tmp_path, resplit=True).parts is None
    (tmp_path / "test-0000.tar").rename(tmp_path / "more.tar")
    with pytest.raises(DataError, match=r"more\.tar is of no part"):
        found(tmp_path)
    (tmp_path / "more.tar").unlink()
    with pytest.raises(DataError, match="none is of test"):
        found(tmp_path)


def test_a_manifest_names_members_of_shards_and_files_alike(data: Path, chestx: Chestx, tmp_path: Path) -> None:
    files = sorted(data.rglob("*.png"))
    write_tar(tmp_path / "one.tar", [(f"./in/{file.name}", file.read_bytes()) for file in files[:30]])
    write_tar(tmp_path / "two.tar", [(file.name, file.read_bytes()) for file in files[30:50]])
    shutil.copytree(data, tmp_path / "files")
    paths = [f"one.tar/in/{file.name}" for file in files[:30]] + [f"two.tar/{file.name}" for file in files[30:50]]
    paths += [f"files/{file.parent.name}/{file.name}" for file in files[50:]]
    table = pd.DataFrame({"path": paths, "label": [file.parent.name for file in files]})
    # Listed in any order, read in that of the shards.
    table.sample(frac=1, random_state=0).to_csv(tmp_path / "m.csv", index=False)
    listing = found(tmp_path / "m.csv")
    assert [path for path in listing.paths if ".tar/" in path] == paths[:50]
    assert chestx("split", tmp_path / "m.csv", "--study", tmp_path / "study", *SIZE).code == 0
    split = Study(tmp_path / "study").read_split()
    by_path = dict(zip(paths, files, strict=True))
    assert [read_image(place_of(split, row)) for row in range(60)] == [
        by_path[path].read_bytes() for path in split.paths.tolist()
    ]
    assert (pd.read_csv(tmp_path / "study" / "split.csv")["size_bytes"] > 0).all()
    table.assign(path=[*paths[:-1], "two.tar/nobody.png"]).to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(DataError, match=r"two\.tar lacks nobody\.png"):
        found(tmp_path / "m.csv")


def cut(path: Path, at: int) -> None:
    os.truncate(path, at)


def good(folder: Path, data: Path) -> Path:
    return write_tar(
        folder / "a.tar", [("n.png", png(data)), ("n.cls", b"NORMAL"), ("p.png", png(data, P)), ("p.cls", P.encode())]
    )


def compressed(folder: Path, data: Path) -> None:
    path = good(folder, data)
    path.write_bytes(gzip.compress(path.read_bytes()))


def linked(folder: Path, data: Path) -> None:
    path = good(folder, data)
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("q.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)


def members(*more: tuple[str, bytes]) -> Callable[[Path, Path], object]:
    return lambda folder, data: write_tar(
        folder / "a.tar", [("n.png", png(data)), ("n.cls", b"NORMAL"), ("p.png", png(data, P)), *more]
    )


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder, data: cut(good(folder, data), 1000), "a.tar is cut off or damaged"),
        (lambda folder, data: cut(good(folder, data), 100), "a.tar is cut off or damaged"),
        (lambda folder, data: cut(good(folder, data), 0), "a.tar is cut off or damaged"),
        (lambda folder, _: (folder / "a.tar").write_bytes(b"no tar" * 1000), "a.tar is cut off or damaged"),
        (compressed, "a.tar is compressed (gzip)"),
        (linked, "member q.png that is a link or no plain file"),
        (members(("p.cls", b"x"), ("../q.png", b"")), "member ../q.png that leads out of the shard"),
        (members(("p.cls", b"x"), ("/q.png", b"")), "member /q.png that leads out of the shard"),
        (members(("p.cls", b"x"), ("p.png", b"")), "member p.png that is there twice"),
        (members(("p.cls", b"x"), ("p.jpg", b"")), "two images of the key p: p.png and p.jpg"),
        (members(("q.cls", b"x"), ("p.cls", b"x")), "a label of the key q, and no image"),
        (members(), "no label of the key p"),
        (members(("p.cls", b"x"), ("p.json", b'{"label": "y"}')), "two labels of the key p: x and y"),
        (members(("p.json", b"[1]")), "p.json in shard"),
        (members(("p.cls", b"\xff\xfe")), "no short text in UTF-8"),
        (members(("p.json", b'{"label": "x", "patient": 7}')), "n.png has no group in its JSON"),
    ],
)
def test_a_bad_shard_is_refused_by_what_and_where(
    make: Callable[[Path, Path], object], says: str, data: Path, tmp_path: Path, chestx: Chestx
) -> None:
    make(tmp_path, data)
    outcome = chestx("split", tmp_path, "--study", tmp_path / "study", *SIZE)
    assert outcome.code == 1
    assert says in " ".join(outcome.err.split())
    assert "a.tar" in outcome.err
    assert not (tmp_path / "study" / "split.json").exists()


@pytest.mark.parametrize("end", ["between two members", "without an end"])
def test_a_shard_that_is_cut_between_members_is_not_taken_for_whole(end: str, data: Path, tmp_path: Path) -> None:
    path = good(tmp_path, data)
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    cut(path, last.offset if end == "between two members" else last.offset_data + 512)
    with pytest.raises(DataError, match="cut off or damaged"):
        found(tmp_path)


def test_what_is_beside_the_images_is_counted_and_hidden_files_are_skipped(data: Path, tmp_path: Path) -> None:
    more = (("p.cls", P.encode()), ("p.txt", b"a report"), ("p.seg.png", b"a mask"), ("._n.png", b"of a Mac"))
    members(*more)(tmp_path, data)
    listing = found(tmp_path)
    assert listing.paths == ("a.tar/n.png", "a.tar/p.png")
    assert sum(listing.sifted.values()) == 2


def test_a_shard_that_changed_after_the_split_is_noticed(shards: Path, chestx: Chestx, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "shards")
    assert chestx("split", tmp_path / "shards", "--study", tmp_path / "study", *SIZE).code == 0
    shutil.rmtree(tmp_path / "study" / "cache")
    shard = tmp_path / "shards" / "films-0001.tar"
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    shard.write_bytes(content)
    outcome = chestx(
        "train", "--study", tmp_path / "study", "--backbone", "tiny", "--weights", "none", "--epochs", 1, *SIZE
    )
    assert outcome.code == 1
    assert "has changed since the split" in outcome.err or "cannot read image" in outcome.err
    cut(shard, 2000)
    short = chestx(
        "train", "--study", tmp_path / "study", "--backbone", "tiny", "--weights", "none", "--epochs", 1, *SIZE
    )
    assert "its shard films-0001.tar is shorter than it was" in short.err


def test_folders_with_images_keep_their_layout_beside_shards(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    good(tmp_path / "data" / N, data)
    listing = found(tmp_path / "data")
    assert listing.spans is None
    assert listing.sifted[N, "tar shard"] == 1


def test_a_single_tar_file_is_answered_with_its_folder(data: Path, tmp_path: Path) -> None:
    good(tmp_path, data)
    with pytest.raises(DataError) as refused:
        found(tmp_path / "a.tar")
    assert "name the folder that it lies in" in refused.value.remedy


def test_labels_may_be_numbers(data: Path, tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar",
        [("n.png", png(data)), ("n.json", json.dumps({"label": 0}).encode()), ("p.png", png(data, P)), ("p.cls", b"1")],
    )
    assert found(tmp_path).classes == ("0", "1")
