"""Files written whole or not at all, and the hashes by which they are known."""

from __future__ import annotations

import errno
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


@contextmanager
def folder_if_used(path: Path) -> Iterator[None]:
    """Make a folder and those above it for a block that may leave nothing there; raises StorageError."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    make_folder(path)
    try:
        yield
    finally:
        for folder in made:
            if any(folder.iterdir()):
                break
            folder.rmdir()


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader finds the old content or the new one; raises StorageError."""
    data = content.encode() if isinstance(content, str) else content
    make_folder(path.parent)
    hidden = _hidden_sibling(path)
    try:
        with hidden.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        hidden.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        hidden.unlink(missing_ok=True)
        raise storage_error(error, path) from error


@contextmanager
def folder_appears_whole(final: Path) -> Iterator[Path]:
    """Yield a hidden sibling folder that becomes `final` when the block ends well, and vanishes when it does not.

    A folder that stands at `final` is replaced. Raises StorageError.
    """
    make_folder(final.parent)
    building = _hidden_sibling(final)
    try:
        building.mkdir()
        yield building
        for entry in [building, *building.rglob("*")]:
            if entry.is_dir():
                _sync_folder(entry)
            else:
                with entry.open("rb") as handle:
                    os.fsync(handle.fileno())
        if final.exists():
            retired = _hidden_sibling(final)
            final.rename(retired)
            try:
                building.rename(final)
            except BaseException:
                retired.rename(final)
                raise
            shutil.rmtree(retired)
        else:
            building.rename(final)
        _sync_folder(final.parent)
    except OSError as error:
        raise storage_error(error) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _hidden_sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")


def _sync_folder(path: Path) -> None:
    """Make a rename durable; a system that cannot open folders (Windows) needs no such call."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
