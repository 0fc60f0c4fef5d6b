"""Files and images: written whole or not at all, decoded or refused with a reason."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from chestx_cli import files, freezing, locks
from chestx_cli.errors import StorageError, StudyError
from chestx_cli.files import folder_appears_whole, hidden_file, read_regular, storage_error, write_atomic
from chestx_cli.images import decode_grey
from chestx_cli.locks import locked
from chestx_cli.preprocessing import Preprocessing
from chestx_cli.refusals import UnreadableImageError
from chestx_cli.stages import report as report_stage
from chestx_cli.study import Study, write_record
from conftest import Chestx, tree


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    write_atomic(path, "old")
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StorageError, match="No space left on device") as refused:
        write_atomic(path, "new")
    assert "record.json" in refused.value.fact
    assert tree(tmp_path) == {"record.json": b"old"}


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    final = tmp_path / "variant"
    with folder_appears_whole(final) as folder:
        write_atomic(folder / "a", "1")
        assert not final.exists()
    with pytest.raises(ValueError, match="stop"), folder_appears_whole(final) as folder:
        write_atomic(folder / "a", "2")
        raise ValueError("stop")
    assert tree(tmp_path) == {"variant/a": b"1"}
    with folder_appears_whole(final) as folder:
        write_atomic(folder / "b", "3")
    assert tree(tmp_path) == {"variant/b": b"3"}


def test_a_folder_whose_renames_cannot_be_synced_is_whole_and_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "variant"
    with folder_appears_whole(final) as folder:
        write_atomic(folder / "a", "old")
    monkeypatch.setattr(files, "_sync", lambda path: no_space() if path == tmp_path else None)
    with pytest.raises(StorageError), folder_appears_whole(final) as folder:
        write_atomic(folder / "a", "new")
    # The old content under another name would be data that nobody looks for.
    assert tree(tmp_path) == {"variant/a": b"new"}


def test_a_split_that_cannot_be_written_leaves_nothing_of_itself(
    chestx: Chestx, study: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(study)
    real = write_atomic

    def full_at_the_manifest(path: Path, content: bytes | str) -> None:
        if path.name == "split.csv":
            raise storage_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), path)
        real(path, content)

    monkeypatch.setattr("chestx_cli.study.write_atomic", full_at_the_manifest)
    outcome = chestx("split", data, "--study", study, "--seed", "7", "--force")
    assert outcome.code == 1
    assert "split.csv: No space left on device" in outcome.err
    after = tree(study)
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} <= {
        name for name in after if name.startswith((".locks/", "cache/"))
    }


def test_a_full_disk_while_building_a_variant_keeps_the_old_one(
    chestx: Chestx, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(study / "variants")
    monkeypatch.setattr(os, "fsync", no_space)
    outcome = chestx("prune", "--study", study, "--amount", "0.3", "--name", "oneshot-50", "--force")
    assert outcome.code == 1
    assert "No space left on device" in outcome.err
    assert "Traceback" not in outcome.err
    assert tree(study / "variants") == before


def test_a_refused_write_names_the_path_that_the_user_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StorageError) as refused, folder_appears_whole(tmp_path / "variant") as folder:
        write_atomic(folder / "model", "weights")
    assert f"{tmp_path / 'variant' / 'model'}:" in refused.value.fact
    with pytest.raises(StorageError) as refused, locked(tmp_path, "the split", "chestx split"):
        pass
    assert "the-split.json" in refused.value.fact
    monkeypatch.undo()
    with pytest.raises(StorageError) as refused, folder_appears_whole(tmp_path / "variant"):
        monkeypatch.setattr(os, "fsync", no_space)
    assert f"{tmp_path / 'variant'}:" in refused.value.fact
    # What the work under a lock runs into is no fault of the lock.
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError), locked(tmp_path, "the split", "chestx split"):
        (tmp_path / "missing").read_bytes()


def test_a_holder_that_has_not_yet_written_down_its_name_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ".locks"
    folder.mkdir()
    holder = json.dumps({"pid": 7, "host": "ward", "command": "chestx split data"})
    # The first look finds nothing; the name is there by the second.
    monkeypatch.setattr("chestx_cli.locks.time.sleep", lambda _: (folder / "the-split.json").write_text(holder))
    with FileLock(folder / "the-split.lock"), pytest.raises(StudyError) as refused, locked(tmp_path, "the split", ""):
        pass
    assert "is being written by process 7 on ward (chestx split data)" in refused.value.fact
    # One that is gone by the second look leaves the lock to us.
    (folder / "the-split.json").unlink()
    held = FileLock(folder / "the-split.lock")
    held.acquire()
    monkeypatch.setattr("chestx_cli.locks.time.sleep", lambda _: held.release())
    with locked(tmp_path, "the split", "chestx split"):
        pass


def test_hidden_files_of_killed_commands_are_swept_and_those_of_living_ones_are_not(tmp_path: Path) -> None:
    left = tmp_path / ".predictions.csv.0123abcd"
    left.write_text("a patient")
    foreign = tmp_path / ".notes"
    foreign.write_text("the user's")
    with hidden_file(tmp_path / "other.csv") as living:
        write_atomic(tmp_path / "record.json", "new")
        assert living.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".notes", "record.json"]


def test_a_split_is_durable_when_it_is_written(
    chestx: Chestx, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, replace = files._sync, Path.replace

    def noted_sync(path: Path) -> None:
        done.append(f"sync {path.name}")
        sync(path)

    def noted_replace(source: Path, final: Path) -> Path:
        done.append(f"to {final.name}")
        return replace(source, final)

    monkeypatch.setattr(files, "_sync", noted_sync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    assert chestx("split", data, "--study", tmp_path / "study").code == 0
    assert done[done.index("to split.json") + 1] == "sync study"


def test_results_are_never_written_into_another_model(chestx: Chestx, study: Path) -> None:
    target = Study(study)
    before = target.read_variant("oneshot-50")
    assert chestx("prune", "--study", study, "--amount", "0.3", "--name", "oneshot-50", "--force").code == 0
    with pytest.raises(StudyError, match="made anew in the meantime"), target.results_of(before):
        pass


def test_a_variant_that_changes_under_an_evaluation_is_told(
    chestx: Chestx, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = locks.hold

    def replaced_just_before(*about: Any) -> None:
        target = Study(study)
        monkeypatch.setattr(freezing, "hold", real)
        write_record(target.variant("oneshot-50") / "variant.json", target.read_variant("oneshot-50").replace(notes=()))
        real(*about)

    monkeypatch.setattr(freezing, "hold", replaced_just_before)
    outcome = chestx("evaluate", "--study", study, "--operating-point", "sensitivity=0.8", "--baseline", "oneshot-50")
    assert outcome.code == 1
    assert "changed by another command just now" in outcome.err


def test_a_report_appears_whole_or_the_old_one_stays(
    chestx: Chestx, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(study / "report")
    real = write_atomic

    def full_at_the_end(path: Path, text: bytes | str) -> None:
        if path.name == "report.md":
            no_space_at = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise storage_error(no_space_at, path)
        real(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(report_stage, "write_atomic", full_at_the_end)
        outcome = chestx("report", "--study", study, "--seed", "7")
    assert outcome.code == 1
    assert f"{study / 'report' / 'report.md'}: No space left on device" in outcome.err.replace("\n", "")
    assert tree(study / "report") == before
    # Killed between two renames: whatever reads the study next brings it back.
    (study / "report").rename(study / ".report.retired")
    assert chestx("prune", "--study", study, "--amount", "0.5").code == 0
    assert tree(study / "report") == before


# Where a module writes without `files`, and why it may: elsewhere than in the study, or into what `files` has hidden.
DIRECT_WRITES = {
    "_command": {"open"},  # os.devnull
    "chestx_bundle": {"open"},  # os.devnull, on a device
    "checkpoints": {"save_file"},  # into a hidden file
    "export": {"save", "write_bytes"},  # into a temporary folder
    "figures": {"print_png", "print_svg"},  # into memory
    "fitting": {"save"},  # a checkpoint
    "int8_calibration": {"save"},  # into a temporary folder
    "models": {"save"},  # into memory
    "pixels": {"open", "replace"},  # a hidden file
    "probing": {"write_bytes"},  # into a temporary folder
    "quantizing": {"write_bytes"},  # into a temporary folder
    "receive": {"mkdir", "open"},  # a folder on a device that is removed
    "report_pictures": {"save"},  # into memory
    "tables": {"to_csv"},  # into memory
    "synthetic": {"mkdir", "save", "write_text"},  # into the folder that `demo` has hidden
}
WRITERS = {
    *(
        "write_text",
        "write_bytes",
        "savefig",
        "print_png",
        "print_svg",
        "to_csv",
        "save",
        "save_file",
        "save_model",
        "tofile",
        "dump",
    ),
    *("rename", "mkdir", "makedirs", "touch", "symlink_to", "copyfile", "copytree", "move"),
}


def test_everything_is_written_through_files() -> None:
    found: dict[str, set[str]] = {}
    for path in (Path(files.__file__).parent).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if path.stem != "files" and isinstance(node, ast.Call) and (name := writing(node)):
                found.setdefault(path.stem, set()).add(name)
    assert found == DIRECT_WRITES


def writing(call: ast.Call) -> str | None:
    """Return the name of a call that writes or renames a file."""
    if isinstance(call.func, ast.Name):
        name = call.func.id
    elif isinstance(call.func, ast.Attribute):
        name = call.func.attr
    else:
        return None
    words = [part.value for part in ast.walk(call) if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    flags = [part.attr for part in ast.walk(call) if isinstance(part, ast.Attribute)]
    if name == "open":
        writes = "O_WRONLY" in flags or any(re.fullmatch(r"[wax]b?[+]?b?|rb?[+]b?", word) for word in words)
        return name if writes else None
    # Texts, records and dataclasses have a `replace` too; with one argument that is no text, it is a path's.
    if name == "replace":
        is_path = len(call.args) == 1 and not call.keywords and not isinstance(call.args[0], ast.Constant)
        return name if is_path else None
    return name if name in WRITERS else None


def test_an_unwritable_study_is_told(chestx: Chestx, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    outcome = chestx("split", data, "--study", tmp_path / "file" / "study")
    assert outcome.code == 1
    assert "--study" in outcome.err
    assert "Traceback" not in outcome.err
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_study_without_permission_is_told(chestx: Chestx, data: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    outcome = chestx("split", data, "--study", locked / "study")
    assert outcome.code == 1
    assert "Permission denied" in outcome.err


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path)
    return path


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA"])
def test_every_mode_becomes_grey(tmp_path: Path, mode: str) -> None:
    pixels = np.zeros((20, 30), dtype=np.uint8)
    pixels[:, 15:] = 255
    grey, facts = decode_grey(save(tmp_path / "image.png", pixels, mode))
    assert (facts.width_px, facts.height_px, grey.mode) == (30, 20, "L")
    found = np.asarray(grey)
    assert found[:, :14].max() < 30
    assert found[:, 16:].min() > 225


def test_16_bit_images_are_scaled_not_clipped(tmp_path: Path) -> None:
    wide = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    grey = np.asarray(decode_grey(save(tmp_path / "wide.png", wide))[0])
    assert grey.ravel().tolist() == pytest.approx(list(range(256)), abs=1)


def test_what_is_no_image_is_refused_with_a_reason(tmp_path: Path) -> None:
    good = save(tmp_path / "good.jpeg", np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))
    contents = {
        "empty.png": (b"", "empty: the file has no bytes"),
        "text.png": (b"this is text", "not a PNG"),
        "page.png": (b"<html></html>", "not a PNG"),
        "cut.jpeg": (good.read_bytes()[:400], "damaged"),
        "header.png": (b"\x89PNG\r\n\x1a\n", "not a PNG|damaged"),
    }
    for name, (content, reason) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableImageError, match=reason):
            decode_grey(tmp_path / name)
    with pytest.raises(UnreadableImageError, match="not-a-file: a folder"):
        decode_grey(tmp_path)
    with pytest.raises(UnreadableImageError, match="missing: No such file"):
        decode_grey(tmp_path / "missing.png")


def test_a_decompression_bomb_is_refused_before_it_unfolds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chestx_cli.refusals.MAX_PIXELS", 100)
    path = save(tmp_path / "large.png", np.zeros((20, 20), dtype=np.uint8))
    with pytest.raises(UnreadableImageError, match="20×20 pixels"):
        decode_grey(path)


def test_normalisation_is_that_of_imagenet() -> None:
    import torch
    from torchvision.transforms import v2

    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)
    expected = v2.Compose(
        [
            v2.Grayscale(num_output_channels=3),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )(torch.from_numpy(pixels)[:, None])
    assert Preprocessing().normalised(pixels) == pytest.approx(expected.numpy(), abs=1e-5)


def test_a_file_that_is_longer_than_it_was_said_to_be_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "growing"
    path.write_bytes(b"abc")
    told = path.stat()
    path.write_bytes(b"abcdefgh")
    monkeypatch.setattr(os, "fstat", lambda _: told)
    assert read_regular(path, 8) == b"abcdefgh"
    with pytest.raises(OSError, match="larger than") as refused:
        read_regular(path, 7)
    assert refused.value.errno == errno.EFBIG
