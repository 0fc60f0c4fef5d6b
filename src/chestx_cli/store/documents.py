"""JSON documents of a study: read with schema validation, written atomically."""

from __future__ import annotations

import functools
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from chestx_cli.core.errors import STUDY_FLAG, IntegrityError, command_line, in_study, quoted
from chestx_cli.core.files import read_json, sha256_of, storage_error, write_atomic
from chestx_cli.core.record import Record
from chestx_cli.records.variant import VariantRecord

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

R = TypeVar("R", bound=Record)

_SCHEMA = re.compile(r"(.+)/([0-9]{1,9})")


def require_hash(path: Path, sha256: str, remedy: str) -> None:
    """Raise IntegrityError if a file is missing or its hash differs from the recorded one."""
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

    Raises IntegrityError for a document that is damaged, of another type, or of an unsupported version.
    """
    from pydantic import ValidationError

    try:
        document = read_json(path)
    except OSError as error:
        raise storage_error(error, path) from error
    except ValueError as error:
        raise IntegrityError(f"{path} is not JSON: {error}", _remedy(kind, path, None)) from error
    schema = document.pop("schema", None) if isinstance(document, dict) else None
    if schema not in (kind.schema, *kind.reads):
        raise _foreign_schema(path, schema, kind.schema, _remedy(kind, path, document))
    if schema != kind.schema:
        document = kind.upgraded(document)
    try:
        record: R = _validator(kind).validate_python(document)  # type: ignore[arg-type]  # classes are hashable
    except ValidationError as error:
        raise IntegrityError(f"{path} is damaged{damage_of(error)}", _remedy(kind, path, document)) from error
    return record


def damage_of(error: ValidationError) -> str:
    """Return the first fault that a validation has found, and the field where it lies, to follow "is damaged"."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    reason = first["msg"].removeprefix("Value error, ")
    # What a whole document's own check finds is of no field.
    return f" at {where}: {reason}" if where else f": {reason}"


def _remedy(kind: type[Record], path: Path, document: object) -> str:
    """Return what to do about a damaged document, by the command that writes its kind or made this variant."""
    stamp = document.get("stamp") if isinstance(document, dict) else None
    command = stamp.get("command") if isinstance(stamp, dict) else None
    remedy = kind.remedy.format(variant=quoted(path.parent.name))
    if kind is VariantRecord and isinstance(command, str):
        remedy = f'run "{renewal(command)}" to make it again, or restore the file'
    folder = path.parent
    study = folder.parent.parent if folder.parent.name == "variants" else folder
    # The failed command may have been given the folds' common study.
    is_fold = (study.resolve().parent / "folds.json").exists()
    return in_study(remedy, quoted(str(study))) if is_fold else remedy


def renewal(command: str) -> str:
    """Return the command that makes a variant again, for its study: the recorded one with --force.

    Records have placeholders for the study and the data: the one is added where the command is shown, the other is
    known to the study.
    """
    try:
        words = shlex.split(command)
    except ValueError:
        # An edited record, whose quotes do not match.
        words = command.split()
    kept = [
        word for before, word in pairwise(["", *words]) if word not in ("DATA", STUDY_FLAG) and before != STUDY_FLAG
    ]
    return command_line(kept if "--force" in kept else [*kept, "--force"])


def _foreign_schema(path: Path, schema: object, wanted: str, remedy: str) -> IntegrityError:
    """Return the error for a document of another schema or version."""
    family, _, mine = wanted.rpartition("/")
    theirs = _SCHEMA.fullmatch(schema) if isinstance(schema, str) else None
    if theirs is None or theirs[1] != family:
        return IntegrityError(f"{path} is no {family} record", remedy)
    return other_version(str(path), f"schema {schema}", newer=int(theirs[2]) > int(mine))


def other_version(what: str, version: str, *, newer: bool) -> IntegrityError:
    """Return the error for a file made by a newer or older version of chestx."""
    if newer:
        return IntegrityError(f"{what} was made by a newer chestx ({version})", "update chestx")
    return IntegrityError(
        f"{what} was made by an older chestx ({version})",
        "run the command that made it again, with --force for a split or a variant",
    )


@functools.cache
def _validator(kind: type[Record]) -> TypeAdapter[Any]:
    """Return the validator for one record class; cached, since building it takes longer than using it."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def write_record(path: Path, record: Record) -> None:
    """Write a record as its JSON document, without its answer."""
    write_atomic(path, record.replace(answer=None).to_json())
