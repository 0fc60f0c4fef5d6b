"""Files written whole or not at all, and the hashes by which they are known."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import shutil
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_RETIRED = ".retired"

_REMEDIES = {
    errno.ENOSPC: "free some space, or choose another place with --study",
    errno.EDQUOT: "free some of your quota, or choose another place with --study",
    errno.EACCES: "get permission to write there, or choose another place with --study",
    errno.EPERM: "get permission to write there, or choose another place with --study",
    errno.EROFS: "the file system is read-only: choose another place with --study",
    errno.ENOTDIR: "a file stands where a folder is needed: choose another place with --study",
    errno.EEXIST: "a file stands where a folder is needed: choose another place with --study",
}


def storage_error(error: OSError, path: Path | None = None) -> StorageError:
    """Return an operating system's refusal as an error that names the path and what to do."""
    where = path or error.filename or error.filename2 or "a file"
    return StorageError(
        f"cannot use {where}: {error.strerror or error}",
        _REMEDIES.get(error.errno or 0, "check the path and the disk"),
    )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(path: Path) -> None:
    """Make a folder and those above it; raises StorageError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, path) from error


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader finds the old content or the new one; raises StorageError."""
    with file_appears_whole(path) as hidden:
        hidden.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def file_appears_whole(final: Path) -> Iterator[Path]:
    """Yield a hidden sibling that becomes `final` when the block has written it, and vanishes when it fails.

    Raises StorageError.
    """
    make_folder(final.parent)
    hidden = _hidden_sibling(final)
    try:
        yield hidden
        _sync(hidden)
        hidden.replace(final)
        _sync(final.parent)
    except OSError as error:
        raise storage_error(error, final) from error
    finally:
        hidden.unlink(missing_ok=True)


@contextmanager
def folder_appears_whole(final: Path) -> Iterator[Path]:
    """Yield a hidden sibling folder that becomes `final` when the block ends well, and vanishes when it does not.

    A folder that stands at `final` is replaced; whoever calls holds the lock of what lies there. Raises StorageError.
    """
    make_folder(final.parent)
    restore_folder(final)
    _sweep(final)
    building = _hidden_sibling(final)
    retired = _retired(final)
    try:
        building.mkdir()
        yield building
        for entry in [building, *building.rglob("*")]:
            _sync(entry)
        if final.exists():
            final.rename(retired)
        try:
            building.rename(final)
        except BaseException:
            restore_folder(final)
            raise
        _sync(final.parent)
        shutil.rmtree(retired, ignore_errors=True)
    except OSError as error:
        raise storage_error(error) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def restore_folder(final: Path) -> None:
    """Bring back what stood at `final` where a command was killed while it replaced it; the lock must be held."""
    retired = _retired(final)
    if retired.exists():
        if final.exists():
            shutil.rmtree(retired, ignore_errors=True)
        else:
            retired.rename(final)


def retired_folders(parent: Path) -> list[Path]:
    """Return the folders below `parent` that a command is replacing, or was replacing when it was killed."""
    return [path.with_name(path.name[1 : -len(_RETIRED)]) for path in parent.glob(f".*{_RETIRED}")]


def _retired(final: Path) -> Path:
    return final.with_name(f".{final.name}{_RETIRED}")


def _sweep(final: Path) -> None:
    """Remove what killed commands have left half-built."""
    for left in final.parent.glob(f".{glob.escape(final.name)}.{'[0-9a-f]' * 8}"):
        shutil.rmtree(left, ignore_errors=True)


def _hidden_sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")


def _sync(path: Path) -> None:
    """Make a file, or the renames in a folder, durable; a system that cannot open folders needs no such call."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
