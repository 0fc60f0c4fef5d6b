"""Checkpoints: the state of an unfinished fit in one file, from which the same command resumes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chestx_cli.core.errors import IntegrityError, OtherOptionsError, StorageError
from chestx_cli.core.files import file_appears_whole
from chestx_cli.core.record import Options, changed_options
from chestx_cli.records.variant import EpochRow

if TYPE_CHECKING:
    import torch

VERSION = 3
RESTART = "--restart starts over"
SUFFIX = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a fit is: finished epochs, steps in the current one and their seconds, and where it began.

    `lowest_loss` is of validation, None before the first epoch ends.
    """

    history: tuple[EpochRow, ...]
    lowest_loss: float | None
    epoch: int
    step: int
    epoch_s: float
    environment: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The complete state of a fit at one moment: its tensors by name, and its progress."""

    tensors: dict[str, torch.Tensor]
    progress: Progress


@contextmanager
def _opened(path: Path, framework: str) -> Iterator[Any]:
    """Open a checkpoint; raises IntegrityError if any part is unreadable."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityError(f"checkpoint {path} is damaged: {error}", RESTART) from error


@dataclass
class Checkpoints:
    """The checkpoints of a variant being made, one file per fit.

    `identity` has the values that identify the variant (`Plan.identity`). Checkpoints are written in the background:
    `save` waits only for the previous write.
    """

    folder: Path
    identity: Options
    every_steps: int | None
    _writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    _pending: Future[None] | None = None

    def require_own(self) -> None:
        """Check the headers of all saved states, without their tensors; raises as `load` does."""
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            # Reading for NumPy does not load torch.
            with _opened(path, "numpy") as file:
                self._progress(path, file)

    def load(self, fit: str) -> Snapshot | None:
        """Return the last saved state of a fit; None if there is none.

        Raises OtherOptionsError if it was begun with other options, IntegrityError if the file is damaged.
        """
        path = self._path(fit)
        if not path.exists():
            return None
        with _opened(path, "pt") as file:
            progress = self._progress(path, file)
            return Snapshot(tensors={name: file.get_tensor(name) for name in file.keys()}, progress=progress)  # noqa: SIM118 - no mapping

    def _progress(self, path: Path, file: Any) -> Progress:
        """Return the progress of a saved state; raises as `load` does."""
        stored = json.loads((file.metadata() or {})["chestx"])
        version, identity, values = stored["version"], stored["identity"], stored["values"]
        if version != VERSION:
            raise IntegrityError(f"checkpoint {path} was made by another version of chestx", RESTART)
        changes = changed_options(identity, json.loads(json.dumps(self.identity)))
        if changes:
            raise OtherOptionsError(
                f"an unfinished run of {self.folder.name!r} used other options ({'; '.join(changes)})",
                f"give those again to finish it; {RESTART}",
            )
        return Progress(**{**values, "history": tuple(EpochRow(**row) for row in values["history"])})

    def save(self, fit: str, snapshot: Snapshot) -> None:
        """Write a fit's state, whose tensors must not change afterwards; raises the previous write's StorageError."""
        self.wait()
        self._pending = self._writer.submit(self._write, fit, snapshot)

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk; raises StorageError if it could not be written."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def clear(self) -> None:
        """Remove all checkpoints of the variant."""
        self.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, fit: str, snapshot: Snapshot) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        about = {"version": VERSION, "identity": self.identity, "values": asdict(snapshot.progress)}
        path = self._path(fit)
        try:
            with file_appears_whole(path) as hidden:
                save_file(snapshot.tensors, hidden, metadata={"chestx": json.dumps(about)})
        except SafetensorError as error:
            # safetensors wraps errors of the operating system in its own exception.
            raise StorageError(f"cannot write {path}: {error}", "check the disk's space and permissions") from error

    def _path(self, fit: str) -> Path:
        return self.folder / f"{re.sub(r'[^a-z0-9]+', '-', fit.lower())}{SUFFIX}"
