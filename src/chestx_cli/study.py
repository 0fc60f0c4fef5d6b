"""The study directory: where everything lies, and reading it with its hashes checked."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from chestx_cli.errors import IntegrityError, StudyError, UsageError
from chestx_cli.files import (
    read_json,
    rename_durably,
    restore_folder,
    retired_folders,
    sha256_of,
    storage_error,
    write_atomic,
)
from chestx_cli.locks import locked
from chestx_cli.preprocessing import PREPROCESSING_VERSION, READ_PREPROCESSING_VERSIONS
from chestx_cli.record import Record
from chestx_cli.records import SplitRecord, VariantRecord
from chestx_cli.split_records import SPLITS
from chestx_cli.tables import read_csv_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    import numpy as np
    import numpy.typing as npt
    from pydantic import TypeAdapter

R = TypeVar("R", bound=Record)

BASELINE = "baseline"
REMAKE = "make it again with --force, or restore the file"
_SCHEMA = re.compile(r"(.+)/([0-9]{1,9})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class Split:
    """The manifest as arrays over all images [N]; `parts` holds train, val or test."""

    root: Path
    classes: tuple[str, ...]
    positive: int
    ids: npt.NDArray[np.str_]
    paths: npt.NDArray[np.str_]
    labels: npt.NDArray[np.int64]
    groups: npt.NDArray[np.str_]
    parts: npt.NDArray[np.str_]
    image_sha256: npt.NDArray[np.str_]
    sha256: str
    # Whether the images have never been opened, as with chestx split --unread.
    unread: bool = False

    @property
    def class_pair(self) -> tuple[str, str]:
        """Return the names of the negative and of the positive class."""
        return self.classes[1 - self.positive], self.classes[self.positive]

    def indices(self, part: str) -> npt.NDArray[np.int64]:
        """Return the rows of one part, in manifest order."""
        import numpy as np

        rows: npt.NDArray[np.int64] = np.flatnonzero(self.parts == part).astype(np.int64)
        return rows

    def is_positive(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return 1 for images of the positive class, 0 for the others."""
        import numpy as np

        flags: npt.NDArray[np.int64] = (self.labels[rows] == self.positive).astype(np.int64)
        return flags


@dataclass(frozen=True)
class Study:
    """Paths inside a study directory, and reading what lies there."""

    root: Path

    @property
    def split_csv(self) -> Path:
        """Return the manifest's path."""
        return self.root / "split.csv"

    @property
    def split_json(self) -> Path:
        """Return the path of the split's record."""
        return self.root / "split.json"

    @property
    def duplicates_csv(self) -> Path:
        """Return the list of pairs of images that are one."""
        return self.root / "duplicates.csv"

    def images_csv(self, name: str) -> Path:
        """Return the table that tells the files of an evaluation on other images; it stays with the data."""
        return self.root / f"images.{name}.csv"

    @property
    def folds_json(self) -> Path:
        """Return the record of the folds of a study whose folders fold-1, fold-2, ... are studies."""
        return self.root / "folds.json"

    def fold(self, number: int) -> Study:
        """Return one fold's study."""
        return Study(self.root / f"fold-{number}")

    @property
    def cache(self) -> Path:
        """Return the folder of what can be made again from the rest; the folds of a study share one."""
        above = Study(self.root.resolve().parent)
        return (above if above.folds_json.exists() else self).root / "cache"

    @property
    def report(self) -> Path:
        """Return the report's folder."""
        return self.root / "report"

    def variant(self, name: str) -> Path:
        """Return a variant's folder; raises UsageError for a name that cannot be one."""
        if not _NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot name a variant", "use letters, digits, '.', '_', '+' and '-'")
        return self.root / "variants" / name

    def variant_names(self) -> tuple[str, ...]:
        """Return all variants, the baseline first, then in the order in which they were made."""
        self._restore_variants()
        folder = self.root / "variants"
        found = (path.parent.name for path in folder.glob("*/variant.json"))
        # Half-built folders are hidden, and a copy made by hand may have any name.
        names = [name for name in found if _NAME.fullmatch(name)]
        made = {name: self.read_variant(name).stamp.created for name in names}
        return tuple(sorted(names, key=lambda name: (name != BASELINE, made[name], name)))

    def _restore_variants(self) -> None:
        """Bring back variants, and the report, that a command was replacing when it was killed."""
        if self.report in retired_folders(self.root):
            with self.figures_files():
                pass
        for final in retired_folders(self.root / "variants"):
            # Where the lock is held, the command is alive and about to finish.
            with contextlib.suppress(StudyError), locked(self.root, f"variant {final.name}", "restoring it"):
                restore_folder(final)

    def variant_files(self, name: str) -> AbstractContextManager[str | None]:
        """Return the lock of the files in a variant's folder, which is held for moments and waited for."""
        return locked(self.root, f"the files of {name}", "writing them", wait=True)

    @contextlib.contextmanager
    def results_of(self, variant: VariantRecord) -> Iterator[Path]:
        """Yield a variant's folder to write results into, held against being replaced.

        Raises StudyError where another model of this name has taken the variant's place since it was read.
        """
        with self.variant_files(variant.name):
            if self.read_variant(variant.name).model_sha256 != variant.model_sha256:
                raise StudyError(
                    f"variant {variant.name!r} was made anew in the meantime: the results are of the one before",
                    "run the command again",
                )
            yield self.variant(variant.name)

    @contextlib.contextmanager
    def figures_files(self) -> Iterator[None]:
        """Hold the lock of the report's folder, which is waited for; what a killed command was replacing is back."""
        with locked(self.root, "the figures", "drawing them", wait=True):
            restore_folder(self.report)
            yield

    def write_split(self, manifest: bytes, record: SplitRecord) -> None:
        """Write a split's manifest and record, both or neither; the lock of the split must be held."""
        if self._has_manifest_of(record):
            write_record(self.split_json, record)
            return
        # The next record first: whoever finds it after a kill can tell by its hash whether the manifest got there too.
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

    def _finish_split(self) -> None:
        """Finish, or undo, writing a split where a command was killed over it."""
        if not self._next_split_json.exists():
            return
        with contextlib.suppress(StudyError), locked(self.root, "the split", "finishing it"):
            following = read_record(SplitRecord, self._next_split_json)
            if self._has_manifest_of(following):
                rename_durably(self._next_split_json, self.split_json)
            else:
                self._next_split_json.unlink()

    def read_split_record(self) -> SplitRecord:
        """Return the split's record; raises StudyError where there is none."""
        self._finish_split()
        if not self.split_json.exists() or not self.split_csv.exists():
            if self.folds_json.exists():
                raise StudyError(f"{self.root}/ has folds", f"name one of them: --study {self.fold(1).root}")
            raise StudyError(f"no split in {self.root}/", 'run "chestx split DATA" first')
        return read_record(SplitRecord, self.split_json)

    def read_split(self) -> Split:
        """Return the manifest; raises StudyError where there is none, IntegrityError where it was edited."""
        record = self.read_split_record()
        require_hash(self.split_csv, record.split_csv_sha256, 'run "chestx split DATA --force" to make it again')
        return _parsed(self.split_csv.resolve(), record.split_csv_sha256, record.data, record.classes, record.positive)

    def read_variant(self, name: str) -> VariantRecord:
        """Return a variant's record; raises StudyError, naming what makes it, where there is none."""
        self._restore_variants()
        path = self.variant(name) / "variant.json"
        if not path.exists():
            known = sorted(p.parent.name for p in (self.root / "variants").glob("[!.]*/variant.json"))
            raise StudyError(
                f"no variant {name!r} in {self.root}/",
                f"it has {', '.join(known)}; name one of these" if known else 'run "chestx train DATA" first',
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
        """Return a variant whose model file is intact and which has not seen this split's test images in training.

        Raises IntegrityError where the model was edited, StudyError where the variant belongs to another split.
        """
        record = self.read_variant(name)
        if record.split_sha256 != split.sha256:
            raise StudyError(
                f"variant {name!r} was trained on another split: its test images may have been seen in training",
                f"make it again with --force, or remove {self.variant(name)}",
            )
        if record.classes != split.classes or record.positive != split.classes[split.positive]:
            raise IntegrityError(f"variant {name!r} has other classes than the split that it belongs to", REMAKE)
        require_hash(self.variant(name) / record.model_file, record.model_sha256, "make the variant again with --force")
        return record

    def read_parent(self, name: str, split: Split) -> VariantRecord:
        """Return a usable variant that has torch weights; raises StudyError, too, for one that has not."""
        record = self.read_usable_variant(name, split)
        if record.kind != "torch":
            raise StudyError(
                f"variant {name!r} is an ONNX file, torch weights are needed", "name a torch variant with --from"
            )
        return record

    def chosen(self, names: Sequence[str], split: Split) -> list[VariantRecord]:
        """Return the named variants, or all; raises StudyError where there is none."""
        records = [self.read_usable_variant(name, split) for name in dict.fromkeys(names or self.variant_names())]
        if not records:
            raise StudyError(f"no variants in {self.root}/", 'run "chestx train DATA" first')
        return records


# A command reads it for itself and again for each of its figures.
@functools.lru_cache(maxsize=2)
def _parsed(path: Path, sha256: str, root: str, classes: tuple[str, ...], positive: str) -> Split:  # noqa: ARG001 - tells
    """Return a manifest whose hash has been checked; the hash tells it from an earlier one at the same place."""
    return parse_manifest(path.read_bytes(), root=Path(root), classes=classes, positive=positive)


def parse_manifest(content: bytes, *, root: Path, classes: tuple[str, ...], positive: str) -> Split:
    """Return the content of a `split.csv` as arrays; image paths are relative to `root`.

    Raises IntegrityError for a table that no split can have written.
    """
    import numpy as np

    # Text of fixed width would take four times the memory of a million paths.
    columns = ["image_id", "path", "label", "group", "split", "sha256", "width_px"]
    index = {name: i for i, name in enumerate(classes)}
    try:
        table = read_csv_text(content, columns)
        if unknown := set(table["split"]) - set(SPLITS):
            raise ValueError(f"no part of a split is called {min(unknown)!r}")
        return Split(
            root=root,
            classes=classes,
            positive=index[positive],
            ids=table["image_id"].to_numpy(object),
            paths=table["path"].to_numpy(object),
            labels=np.array([index[label] for label in table["label"].tolist()], dtype=np.int64),
            groups=table["group"].to_numpy(object),
            parts=table["split"].to_numpy(object),
            image_sha256=table["sha256"].to_numpy(object),
            sha256=hashlib.sha256(content).hexdigest(),
            unread=bool((table["width_px"] == "").any()),
        )
    except KeyError as error:
        raise IntegrityError(f"the split has an image of a class {error} that it does not have", REMAKE) from error
    except ValueError as error:
        raise IntegrityError(f"the manifest of the split is damaged: {error}", REMAKE) from error


def require_hash(path: Path, sha256: str, remedy: str) -> None:
    """Raise IntegrityError where a file is missing or is not the one its record tells of."""
    if not path.is_file():
        raise IntegrityError(f"{path} is missing", remedy)
    try:
        actual = sha256_of(path)
    except OSError as error:
        raise storage_error(error, path) from error
    if actual != sha256:
        raise IntegrityError(f"{path} was changed since it was made (sha256 differs from its record)", remedy)


def read_record(kind: type[R], path: Path) -> R:
    """Return a record read from its JSON document.

    Raises IntegrityError for a document that is damaged, of another kind, or of another version.
    """
    from pydantic import ValidationError

    try:
        document = read_json(path)
    except OSError as error:
        raise storage_error(error, path) from error
    except ValueError as error:
        raise IntegrityError(f"{path} is not JSON: {error}", REMAKE) from error
    schema = document.pop("schema", None) if isinstance(document, dict) else None
    if schema not in (kind.schema, *kind.reads):
        raise _foreign_schema(path, schema, kind.schema)
    try:
        record: R = _validator(kind).validate_python(document)  # type: ignore[arg-type]  # classes are hashable
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise IntegrityError(f"{path} is damaged at {where}: {first['msg']}", REMAKE) from error
    return record


def _foreign_schema(path: Path, schema: object, wanted: str) -> IntegrityError:
    """Return what is wrong with a document whose schema is not the one wanted."""
    family, _, mine = wanted.rpartition("/")
    theirs = _SCHEMA.fullmatch(schema) if isinstance(schema, str) else None
    if theirs is None or theirs[1] != family:
        return IntegrityError(f"{path} is no {family} record", REMAKE)
    return other_version(str(path), f"schema {schema}", newer=int(theirs[2]) > int(mine))


def other_version(what: str, version: str, *, newer: bool) -> IntegrityError:
    """Return the error of something that another version of chestx has made."""
    if newer:
        return IntegrityError(f"{what} was made by a newer chestx ({version})", "update chestx")
    return IntegrityError(
        f"{what} was made by an older chestx ({version})",
        "run the command that made it again, with --force for a split or a variant",
    )


@functools.cache
def _validator(kind: type[Record]) -> TypeAdapter[Any]:
    """Return what checks documents of one kind; making it takes longer than using it."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def write_record(path: Path, record: Record) -> None:
    """Write a record as its JSON document."""
    write_atomic(path, record.to_json())
