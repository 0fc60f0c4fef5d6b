"""Atomic writes: files are written completely or not at all, and nothing bypasses this."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import pytest

import chestx_cli
from chestx_cli.core import files
from chestx_cli.core.errors import StorageError
from chestx_cli.core.files import folder_appears_whole, hidden_file, temporary_folder, write_atomic
from conftest import no_space, tree


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    write_atomic(path, "old")
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StorageError, match="No space left on device") as refused:
        write_atomic(path, "new")
    assert "record.json" in refused.value.fact
    assert tree(tmp_path) == {"record.json": b"old"}


def test_an_error_in_a_temporary_folder_names_it_and_what_moves_it(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as refused, temporary_folder() as folder:
        # As a library that writes into an open file.
        no_space()
    assert f"cannot use {folder}" in refused.value.fact
    assert "TMPDIR" in refused.value.remedy
    assert not folder.exists()
    with pytest.raises(FileNotFoundError), temporary_folder():
        (tmp_path / "of another place").read_bytes()


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


def test_hidden_files_of_killed_commands_are_swept_and_those_of_living_ones_are_not(tmp_path: Path) -> None:
    left = tmp_path / ".predictions.csv.0123abcd"
    left.write_text("a patient")
    foreign = tmp_path / ".notes"
    foreign.write_text("the user's")
    with hidden_file(tmp_path / "other.csv") as living:
        write_atomic(tmp_path / "record.json", "new")
        assert living.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".notes", "record.json"]


SOURCE = Path(chestx_cli.__file__).parent
# Where a module writes without `files`, and why it may: elsewhere than in the study, or into what `files` has hidden.
DIRECT_WRITES = {
    "core/errors": {"write_text"},  # where the launcher of several processes reads it
    "cli/adapter": {"open"},  # os.devnull
    "compression/cost_probe": {"write_bytes"},  # into a temporary folder
    "compression/quantization/methods": {"write_bytes"},  # into a temporary folder
    "compression/quantization/ranges": {"save"},  # into a temporary folder
    "data/images/pixel_cache": {"open", "replace"},  # a hidden file
    "data/synthetic/sets": {"mkdir", "save", "write_text"},  # into the folder that `demo` has hidden
    "commands/export": {"write_bytes"},  # into a temporary folder
    "inference/device/chestx_bundle": {"open"},  # os.devnull, on a device
    "inference/pictures/heatmaps": {"save"},  # into memory
    "inference/device/receive": {"mkdir", "open"},  # a folder on a device that is removed
    "networks/training": {"save"},  # a checkpoint
    "networks/weights/serialization": {"save"},  # into memory
    "reporting/figures/drawing": {"print_png", "print_svg"},  # into memory
    "reporting/page/pictures": {"save"},  # into memory
    "store/checkpoints": {"save_file"},  # into a hidden file
    "store/tables": {"to_csv"},  # into memory
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
    for path in SOURCE.rglob("*.py"):
        module = path.relative_to(SOURCE).with_suffix("").as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if module != "core/files" and isinstance(node, ast.Call) and (name := writing(node)):
                found.setdefault(module, set()).add(name)
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
