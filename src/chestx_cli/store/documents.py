"""JSON documents of a study: read with schema validation, written atomically."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from chestx_cli.core.errors import IntegrityError
from chestx_cli.core.files import read_json, sha256_of, storage_error, write_atomic
from chestx_cli.core.record import Record

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

R = TypeVar("R", bound=Record)

REMAKE = "make it again with --force, or restore the file"
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
        raise IntegrityError(f"{path} is not JSON: {error}", REMAKE) from error
    schema = document.pop("schema", None) if isinstance(document, dict) else None
    if schema not in (kind.schema, *kind.reads):
        raise _foreign_schema(path, schema, kind.schema)
    if schema != kind.schema:
        document = kind.upgraded(document)
    try:
        record: R = _validator(kind).validate_python(document)  # type: ignore[arg-type]  # classes are hashable
    except ValidationError as error:
        raise IntegrityError(f"{path} is damaged{damage_of(error)}", REMAKE) from error
    return record


def damage_of(error: ValidationError) -> str:
    """Return the first fault that a validation has found, and the field where it lies, to follow "is damaged"."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    reason = first["msg"].removeprefix("Value error, ")
    # What a whole document's own check finds is of no field.
    return f" at {where}: {reason}" if where else f": {reason}"


def _foreign_schema(path: Path, schema: object, wanted: str) -> IntegrityError:
    """Return the error for a document of another schema or version."""
    family, _, mine = wanted.rpartition("/")
    theirs = _SCHEMA.fullmatch(schema) if isinstance(schema, str) else None
    if theirs is None or theirs[1] != family:
        return IntegrityError(f"{path} is no {family} record", REMAKE)
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
