"""The study directory: paths of its files, and its split and variants read with their hashes checked."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.core.errors import IntegrityError, StorageError, StudyError, UsageError, again, quoted
from chestx_cli.core.files import (
    rename_durably,
    restore_folder,
    retired_folders,
    sha256_of,
    write_atomic,
)
from chestx_cli.records.preprocessing import PREPROCESSING_VERSION, READ_PREPROCESSING_VERSIONS
from chestx_cli.records.split import SplitRecord
from chestx_cli.records.variant import BASELINE, VariantRecord
from chestx_cli.store.documents import other_version, read_record, renewal, require_hash, write_record
from chestx_cli.store.locks import locked
from chestx_cli.store.split import parse_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from chestx_cli.store.split import Split

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


@dataclass(frozen=True)
class Study:
    """Paths in a study directory, and readers of its files; reading writes nothing and takes no lock.

    Commands get their study from `open_study`, which repairs what killed commands left.
    """

    root: Path

    @property
    def split_csv(self) -> Path:
        """Return the path of the manifest."""
        return self.root / "split.csv"

    @property
    def split_json(self) -> Path:
        """Return the path of the split's record."""
        return self.root / "split.json"

    @property
    def duplicates_csv(self) -> Path:
        """Return the path of the list of duplicate image pairs."""
        return self.root / "duplicates.csv"

    def images_csv(self, name: str) -> Path:
        """Return the path of the file list of an evaluation on other images; it stays with the data."""
        return self.root / f"images.{name}.csv"

    def training_images(self, split_sha256: str, identity: str) -> Path:
        """Return the path of the statistics of a split's training images with one preprocessing, by its identity."""
        key = hashlib.sha256(f"{split_sha256}\n{identity}".encode()).hexdigest()[:12]
        return self.root / f"training-images.{key}.json"

    @property
    def folds_json(self) -> Path:
        """Return the path of the record of folds; the folders fold-1, fold-2, ... are studies themselves."""
        return self.root / "folds.json"

    @property
    def plan_json(self) -> Path:
        """Return the path of the plan of a study over folds and seeds; its folders seed-42, ... have folds."""
        return self.root / "plan.json"

    @property
    def study_json(self) -> Path:
        """Return the path of the results of a study over folds and seeds."""
        return self.root / "study.json"

    def fold(self, number: int) -> Study:
        """Return the study of one fold."""
        return Study(self.root / f"fold-{number}")

    @property
    def cache(self) -> Path:
        """Return the folder of files that can be recomputed; folds, and cells of a planned study, share one."""
        parent = Study(self.root.resolve().parent)
        is_part = parent.folds_json.exists() or parent.plan_json.exists()
        return parent.cache if is_part else self.root / "cache"

    @property
    def report(self) -> Path:
        """Return the folder of the report."""
        return self.root / "report"

    def variant(self, name: str) -> Path:
        """Return a variant's folder; raises UsageError for an invalid name."""
        if not _NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot name a variant", "use letters, digits, '.', '_', '+' and '-'")
        return self.root / "variants" / name

    def read_variants(self) -> tuple[VariantRecord, ...]:
        """Return the records of all variants, the baseline first, then in order of creation."""
        names = (path.parent.name for path in (self.root / "variants").glob("*/variant.json"))
        # Skips half-built folders, which are hidden, and copies made by hand with invalid names.
        records = [self.read_variant(name) for name in names if _NAME.fullmatch(name)]
        return tuple(sorted(records, key=lambda r: (r.name != BASELINE, r.stamp.created, r.name)))

    def variant_names(self) -> tuple[str, ...]:
        """Return the names of all variants in the order of `read_variants`."""
        return tuple(record.name for record in self.read_variants())

    def variant_files(self, name: str) -> AbstractContextManager[str | None]:
        """Return the lock of the files in a variant's folder; it is held briefly, so it is waited for."""
        return locked(self.root, f"the files of {name}", "writing them", wait=True)

    @contextlib.contextmanager
    def results_of(self, variant: VariantRecord) -> Iterator[Path]:
        """Yield a variant's folder to write results into, locked against replacement.

        Raises StudyError if the variant has been replaced by another model since it was read.
        """
        with self.variant_files(variant.name):
            if self.read_variant(variant.name).model_sha256 != variant.model_sha256:
                raise StudyError(
                    f"variant {variant.name!r} was replaced in the meantime: these results are of the one before",
                    "run the command again",
                )
            yield self.variant(variant.name)

    @contextlib.contextmanager
    def figures_files(self) -> Iterator[None]:
        """Wait for and hold the lock of the report's folder; restore it if a command was killed while replacing it."""
        with locked(self.root, "the figures", "drawing them", wait=True):
            restore_folder(self.report)
            yield

    def write_split(self, manifest: bytes, record: SplitRecord) -> None:
        """Write a split's manifest and record, both or neither; the split's lock must be held."""
        if self._has_manifest_of(record):
            write_record(self.split_json, record)
            return
        # Write the new record under a temporary name first: after a kill, its hash shows whether the manifest followed.
        write_record(self._next_split_json, record)
        try:
            write_atomic(self.split_csv, manifest)
        except BaseException:
            with contextlib.suppress(OSError):
                if not self._has_manifest_of(record):
                    self._next_split_json.unlink()
            raise
        rename_durably(self._next_split_json, self.split_json)

    def _has_manifest_of(self, record: SplitRecord) -> bool:
        return self.split_csv.exists() and sha256_of(self.split_csv) == record.split_csv_sha256

    @property
    def _next_split_json(self) -> Path:
        return self.root / ".split.json.next"

    def read_split_record(self) -> SplitRecord:
        """Return the split's record; raises StudyError if there is none."""
        if not self.split_json.exists() or not self.split_csv.exists():
            if self.folds_json.exists():
                raise StudyError(
                    f"{self.root}/ has folds",
                    f"{again(f'--study {quoted(str(self.fold(1).root))}')} takes the first",
                )
            if cell := next(iter(sorted(self.root.glob("seed-*/fold-1"))), None) if self.plan_json.exists() else None:
                raise StudyError(
                    f"{self.root}/ is a study over folds and seeds",
                    f"{again(f'--study {quoted(str(cell))}')} takes its first cell",
                )
            raise StudyError(f"no split in {self.root}/", f"run {self._command('split DATA')} first")
        return read_record(SplitRecord, self.split_json)

    def read_split(self) -> Split:
        """Return the manifest; raises StudyError if there is none, IntegrityError if it was edited."""
        return self.read_split_of(self.read_split_record())

    def read_split_of(self, record: SplitRecord) -> Split:
        """Return the manifest of a split whose record is already read, as `read_split` does."""
        require_hash(
            self.split_csv, record.split_csv_sha256, f"run {self._command('split DATA --force')} to make it again"
        )
        return _parsed(self.split_csv.resolve(), record.split_csv_sha256, record.data, record.classes, record.positive)

    def _train_first(self) -> str:
        return f"run {self._command('train' if self.split_json.exists() else 'train DATA')} first"

    def _command(self, words: str) -> str:
        """Return a command for a remedy, with --study only for a fold; the error adds the failed command's study."""
        is_fold = Study(self.root.resolve().parent).folds_json.exists()
        return f'"chestx {words} --study {quoted(str(self.root))}"' if is_fold else f'"chestx {words}"'

    def read_variant(self, name: str) -> VariantRecord:
        """Return a variant's record; raises StudyError if there is none, with the existing names or how to make one."""
        path = self.variant(name) / "variant.json"
        if not path.exists():
            known = sorted(p.parent.name for p in (self.root / "variants").glob("[!.]*/variant.json"))
            raise StudyError(
                f"no variant {name!r} in {self.root}/",
                f"it has {', '.join(known)}; name one of these" if known else self._train_first(),
            )
        record = read_record(VariantRecord, path)
        if record.name != name:
            raise IntegrityError(
                f"{path.parent} holds a copy of variant {record.name!r}", "remove it; make a second variant with --name"
            )
        if (version := record.preprocessing.version) not in READ_PREPROCESSING_VERSIONS:
            raise other_version(str(path), f"preprocessing {version}", newer=version > PREPROCESSING_VERSION)
        return record

    def read_usable_variant(self, name: str, split: Split) -> VariantRecord:
        """Return a variant whose model file is intact and which was not trained on this split's test images.

        Raises IntegrityError if the model was edited, StudyError if the variant belongs to another split.
        """
        record = self.read_variant(name)
        self.require_usable(record, split)
        return record

    def require_usable(self, record: VariantRecord, split: Split, *, check_model: bool = True) -> None:
        """Raise as `read_usable_variant` does if a variant cannot be used; `check_model` also hashes its file."""
        name = record.name
        if record.split_sha256 != split.sha256:
            raise StudyError(
                f"variant {name!r} was trained on another split: its test images may have been seen in training",
                f"make it again with --force, or remove {self.variant(name)}",
            )
        if record.classes != split.classes or record.positive != split.classes[split.positive]:
            renewed = self._command(renewal(record.stamp.command).removeprefix("chestx "))
            raise IntegrityError(
                f"variant {name!r} has other classes than the split that it belongs to",
                f"run {renewed} to make it again, or restore {self.variant(name) / 'variant.json'}",
            )
        if check_model:
            model = self.variant(name) / record.model_file
            require_hash(model, record.model_sha256, "make the variant again with --force")

    def read_parent(self, name: str, split: Split) -> VariantRecord:
        """Return a usable variant with torch weights; also raises StudyError for an ONNX variant."""
        record = self.read_usable_variant(name, split)
        if record.kind != "torch":
            raise StudyError(
                f"variant {name!r} is an ONNX file, torch weights are needed", "name a torch variant with --from"
            )
        return record

    def chosen(self, names: Sequence[str], split: Split) -> list[VariantRecord]:
        """Return the named variants, or all; raises StudyError if there is none."""
        records = [self.read_variant(name) for name in dict.fromkeys(names)] if names else list(self.read_variants())
        if not records:
            raise StudyError(f"no variants in {self.root}/", self._train_first())
        for record in records:
            self.require_usable(record, split)
        return records

    def recover(self) -> None:
        """Finish or undo the writes of killed commands; those of running commands are left alone."""
        if self._next_split_json.exists():
            with contextlib.suppress(StudyError), locked(self.root, "the split", "finishing it"):
                self._finish_split()
        if self.report in retired_folders(self.root):
            with self.figures_files():
                pass
        for final in retired_folders(self.root / "variants"):
            # If the lock is held, its command is running and about to finish.
            with contextlib.suppress(StudyError), locked(self.root, f"variant {final.name}", "restoring it"):
                restore_folder(final)

    def _finish_split(self) -> None:
        # The previous holder of the lock may have finished it.
        if not self._next_split_json.exists():
            return
        try:
            has_manifest = self._has_manifest_of(read_record(SplitRecord, self._next_split_json))
        except IntegrityError:
            # Not left by a killed command, since records are written atomically; it matches no manifest.
            has_manifest = False
        if has_manifest:
            rename_durably(self._next_split_json, self.split_json)
        else:
            self._next_split_json.unlink()


def open_study(root: Path) -> Study:
    """Return the study that a command works on, after repairing what killed commands left in it and its folds.

    Writes only if there is something to repair. A study that cannot be written to is read as it is.
    """
    study = Study(root)
    for cell in (study, *(Study(folder) for folder in sorted(root.glob("fold-*")))):
        with contextlib.suppress(StorageError):
            cell.recover()
    return study


# A command may read the manifest twice, for example to draw figures.
@functools.lru_cache(maxsize=2)
def _parsed(path: Path, sha256: str, root: str, classes: tuple[str, ...], positive: str) -> Split:  # noqa: ARG001 - cache key
    """Return a manifest whose hash has been checked; the hash is part of the cache key, for manifests that change."""
    return parse_manifest(path.read_bytes(), root=Path(root), classes=classes, positive=positive)
