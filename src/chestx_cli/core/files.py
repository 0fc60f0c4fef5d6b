"""Atomic writes, bounded reads and SHA-256 of files."""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import hashlib
import json
import math
import os
import re
import shutil
import stat
import sys
import tempfile
import threading
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, cast

from chestx_cli.core.errors import PLACE, StorageError, StudyError

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterator

_HIDDEN = re.compile(r"\..+\.[0-9a-f]{8}")
_RETIRED = ".retired"
_SEEKING = threading.Lock()
# Larger than the record of a split of millions of images that names every one of them.
MAX_DOCUMENT_BYTES = 2**30
_TAIL_BYTES = 2**16

_REMEDIES = {
    errno.ENOSPC: f"free some space, or choose another place with {PLACE}",
    errno.EDQUOT: f"free some of your quota, or choose another place with {PLACE}",
    errno.EACCES: f"get permission to write there, or choose another place with {PLACE}",
    errno.EPERM: f"get permission to write there, or choose another place with {PLACE}",
    errno.EROFS: f"the file system is read-only: choose another place with {PLACE}",
    errno.ENOTDIR: f"a file stands where a folder is needed: choose another place with {PLACE}",
    errno.EEXIST: f"a file stands where a folder is needed: choose another place with {PLACE}",
}


def storage_error(error: OSError, path: Path | None = None) -> StorageError:
    """Return an OSError as a StorageError that names the path and the remedy."""
    where = path or error.filename or error.filename2 or "a file"
    return StorageError(
        f"cannot use {where}: {error.strerror or error}",
        _REMEDIES.get(error.errno or 0, "check the path and the disk"),
        path=str(where),
    )


def identified(path: Path) -> str:
    """Return a file's name and hash, by which records name a file of the user."""
    return f"{path.name} (sha256 {sha256_of(path)})"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_regular(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file.

    Raises OSError: EISDIR or EINVAL if it is no regular file (pipes do not block), EFBIG if it exceeds `max_bytes`.
    """
    with _open_regular(path) as file:
        status = os.fstat(file.fileno())
        # Read the reported size first: allocating the maximum takes longer than reading.
        content = file.read(min(status.st_size, max_bytes) + 1)
        if len(content) > status.st_size:
            content += file.read(max(0, max_bytes + 1 - len(content)))
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"larger than {max_bytes / 2**20:,.0f} MiB")
    return content


def read_head(path: Path, n_bytes: int) -> bytes:
    """Return the first bytes of a regular file; raises OSError as `read_regular` does."""
    with _open_regular(path) as file:
        return file.read(n_bytes)


def read_span(path: Path, offset: int, n_bytes: int) -> bytes:
    """Return the bytes of a regular file from an offset, fewer at its end; raises OSError as above.

    The files read last stay open, because the system reads ahead only in open files.
    """
    file = _kept_open(path)
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), n_bytes, offset)
    with _SEEKING:
        file.seek(offset)
        return file.read(n_bytes)


# A file dropped from the cache is closed when no reader uses it any more.
@functools.lru_cache(maxsize=32)
def _kept_open(path: Path) -> BinaryIO:
    _require_regular(path.stat())
    file = path.open("rb", buffering=0)
    _require_regular(os.fstat(file.fileno()))
    return cast("BinaryIO", file)


@contextmanager
def _open_regular(path: Path) -> Iterator[BinaryIO]:
    # Checked before opening: merely opening a device can trigger it.
    _require_regular(path.stat())
    # O_NONBLOCK: if a pipe has replaced the file meanwhile, opening it does not wait for a writer.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:
        _require_regular(os.fstat(handle))
        yield file


def _require_regular(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EISDIR, "a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")


def read_json(path: Path) -> Any:
    """Return a JSON document; raises OSError, and ValueError if it is not strict JSON or nested too deeply."""
    content = read_regular(path, MAX_DOCUMENT_BYTES)
    try:
        return json.loads(content.decode("utf-8"), parse_float=_finite, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def make_folder(path: Path) -> None:
    """Create a folder and its parents; raises StorageError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, path) from error


@contextmanager
def folder_if_used(path: Path) -> Iterator[None]:
    """Create missing folders of a path; remove them again if the block leaves them empty. Raises StorageError."""
    created = [folder for folder in (path, *path.parents) if not folder.exists()]
    make_folder(path)
    try:
        yield
    finally:
        for folder in created:
            try:
                folder.rmdir()
            except OSError:
                # In use: by the block, or by another command.
                break


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a folder for temporary files, removed at the end; raises StorageError for a file that cannot be used in it.

    The file need not be named by the error: libraries write into open files.
    """
    with tempfile.TemporaryDirectory(prefix="chestx-") as folder:
        try:
            yield Path(folder)
        except OSError as error:
            where = error.filename or folder
            if not Path(where).is_relative_to(folder):
                raise
            raise StorageError(
                f"cannot use {where}, for temporary files: {error.strerror or error}",
                "check the disk, or set the variable TMPDIR to a folder with more space",
                path=str(where),
            ) from error


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that readers see either the old or the new content; raises StorageError."""
    with file_appears_whole(path) as hidden:
        hidden.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def file_appears_whole(final: Path) -> Iterator[Path]:
    """Yield a hidden file in the same folder, renamed to `final` when the block succeeds and removed when it fails.

    Raises StorageError.
    """
    make_folder(final.parent)
    try:
        with hidden_file(final) as hidden:
            yield hidden
            _sync(hidden)
            rename_durably(hidden, final)
    except OSError as error:
        raise storage_error(error, final) from error


@contextmanager
def hidden_file(final: Path) -> Iterator[Path]:
    """Yield an empty hidden file beside `final`, to be written and renamed by the block; removed if still there.

    Also removes hidden files of killed commands in the folder, which may hold patient data: the system releases a
    file's lock when its holder dies. Raises OSError.
    """
    _sweep_files(final.parent)
    hidden, handle = _claimed(final)
    try:
        yield hidden
    finally:
        os.close(handle)
        # If that fails too, the next command removes the file.
        with contextlib.suppress(OSError):
            hidden.unlink(missing_ok=True)


@contextmanager
def open_to_append(path: Path) -> Iterator[BinaryIO]:
    """Yield a file of lines to read and to append to, without a last line that a kill has cut.

    What was appended is durable when the block ends. Raises StorageError; StudyError where another process appends.
    """
    try:
        file = path.open("r+b")
    except OSError as error:
        raise storage_error(error, path) from error
    with file:
        _lock_alone(file, path)
        try:
            _cut_behind_last_line(file)
        except OSError as error:
            raise storage_error(error, path) from error
        yield file
        try:
            os.fsync(file.fileno())
        except OSError as error:
            raise storage_error(error, path) from error


def append_lines(file: BinaryIO, lines: bytes) -> None:
    """Append whole lines to such a file; they outlive this process from then on. Raises StorageError.

    Not synced each time: on a busy disk that takes longer than predicting a batch of images.
    """
    try:
        file.seek(0, os.SEEK_END)
        file.write(lines)
        file.flush()
    except OSError as error:
        raise storage_error(error, Path(file.name)) from error


def _lock_alone(file: BinaryIO, path: Path) -> None:
    """Lock an open file until it is closed, if its file system has locks; raises StudyError if it is locked."""
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StudyError(f"{path} is being written by another process", "wait until it has finished") from error
    except OSError:
        return


def _cut_behind_last_line(file: BinaryIO) -> None:
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _TAIL_BYTES)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    file.truncate(end)
    file.seek(0)


def rename_durably(source: Path, final: Path) -> None:
    """Rename a file to its final name so that the change survives a power cut; raises StorageError."""
    try:
        source.replace(final)
        _sync(final.parent)
    except OSError as error:
        raise storage_error(error, final) from error


@contextmanager
def folder_appears_whole(final: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `final`, renamed to `final` when the block succeeds and removed when it fails.

    An existing folder at `final` is replaced; the caller must hold its lock. Raises StorageError.
    """
    make_folder(final.parent)
    restore_folder(final)
    _sweep_folders(final)
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
    except StorageError as error:
        # Name the final path: the hidden one means nothing to users.
        raise error.about(building, final) from error
    except OSError as error:
        raise storage_error(error, final) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
        if final.exists():
            shutil.rmtree(retired, ignore_errors=True)


def restore_folder(final: Path) -> None:
    """Restore the previous folder at `final` if a command was killed while replacing it; the lock must be held."""
    retired = _retired(final)
    if retired.exists():
        if final.exists():
            shutil.rmtree(retired, ignore_errors=True)
        else:
            rename_durably(retired, final)


def retired_folders(parent: Path) -> list[Path]:
    """Return the folders in `parent` that a command is replacing, or was replacing when killed."""
    return [path.with_name(path.name[1 : -len(_RETIRED)]) for path in parent.glob(f".*{_RETIRED}")]


def _retired(final: Path) -> Path:
    return final.with_name(f".{final.name}{_RETIRED}")


def _claimed(final: Path) -> tuple[Path, int]:
    """Return a new hidden file beside `final` and a handle that holds its lock, which marks it as in use."""
    while True:
        hidden = _hidden_sibling(final)
        handle = os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        _lock(handle)
        # Before it was locked, another command may have removed it as abandoned.
        if hidden.exists():
            return hidden, handle
        os.close(handle)


def _lock(handle: int, *, wait: bool = True) -> bool:
    """Lock an open file; return whether that worked. On a file system without locks no file is ever swept.

    flock itself, not filelock, which `store/locks` uses for separate lock files: here the written file itself is
    locked. FileLock truncates the file it locks, and importing it takes 50 ms in every process that writes a file;
    claiming a file takes 0.03 ms with flock and 0.21 ms with filelock (version 3.32, mean of 2,000).
    """
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _sweep_files(folder: Path) -> None:
    """Remove hidden files left by killed commands."""
    for entry in os.scandir(folder):
        if _HIDDEN.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            # Already removed, or owned by another user.
            with contextlib.suppress(OSError):
                handle = os.open(entry.path, os.O_RDONLY)
                try:
                    if _lock(handle, wait=False):
                        Path(entry.path).unlink()
                finally:
                    os.close(handle)


def _sweep_folders(final: Path) -> None:
    """Remove half-built folders left beside `final` by killed commands; the lock must be held."""
    for folder in final.parent.glob(f".{glob.escape(final.name)}.{'[0-9a-f]' * 8}"):
        shutil.rmtree(folder, ignore_errors=True)


def _hidden_sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")


def _sync(path: Path) -> None:
    """Flush a file, or the renames in a folder, to disk; Windows cannot open folders and needs no such call."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
