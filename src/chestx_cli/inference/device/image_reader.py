"""`chestx_images.py` of a bundle: the modules of chestx that read images, joined into one that needs no chestx.

A bundle runs the same code, so it accepts the same images and computes the same pixels.
"""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

READER_FILE = "chestx_images.py"
_PACKAGE = Path(__file__).parents[2]
# Each module comes after those that it needs.
_MODULES = (
    "formats/refusals",
    "formats/readings",
    "formats/jpegs",
    "formats/tiffs",
    "formats/rasters",
    "films",
    "squares",
    "formats/dicom_tags",
    "formats/dicom_subject",
    "formats/dicom_windows",
    "formats/dicom_frames",
    "formats/dicom_values",
    "formats/dicom",
)
# The module that they import constants from.
_CONSTANTS = _PACKAGE / "records" / "preprocessing.py"
_HEAD = '''"""How chestx reads images: made by `chestx export` of its own modules, for the bundle's script beside it.

Research software. Not a medical device. Needs Python 3.9 or newer with numpy and Pillow, for DICOM Python 3.11 and
pydicom 3.
"""

from __future__ import annotations

import dataclasses
import enum
import sys


class DataError(Exception):
    """An image that cannot be used as it is."""


class StrEnum(str, enum.Enum):
    """Python's own class, which older versions than 3.11 lack."""

    __str__ = str.__str__


def dataclass(**settings):
    """Return the decorator; fields by keyword only need Python 3.10."""
    if sys.version_info < (3, 10):
        del settings["kw_only"]
    return dataclasses.dataclass(**settings)
'''
_IN_THE_HEAD = ("from dataclasses import dataclass", "from enum import StrEnum")


def image_reader() -> bytes:
    """Return the content of the joined module; raises ValueError if two modules define one name."""
    defined: Counter[str] = Counter()
    parts = [_HEAD, _constants()]
    for name in _MODULES:
        source = (_PACKAGE / "data" / "images" / f"{name}.py").read_text(encoding="utf-8")
        tree = ast.parse(source)
        defined.update(_names_of(tree))
        left_out = {
            line
            for number, statement in enumerate(tree.body)
            if _is_of_the_package(statement, first=number == 0)
            for line in range(statement.lineno, (statement.end_lineno or 0) + 1)
        }
        kept = [line for number, line in enumerate(source.splitlines(), 1) if number not in left_out]
        title = (ast.get_docstring(tree) or "").partition("\n")[0]
        parts.append(f"# {name}: {title}\n\n" + "\n".join(kept).strip() + "\n")
    if twice := [name for name, n in defined.items() if n > 1]:
        raise ValueError(f"names defined by several modules: {', '.join(twice)}")
    return "\n\n".join(parts).encode()


def _constants() -> str:
    """Return the constants of the preprocessing that have no annotation."""
    source = _CONSTANTS.read_text(encoding="utf-8")
    assigned = (node for node in ast.parse(source).body if isinstance(node, ast.Assign))
    return "\n".join(filter(None, (ast.get_source_segment(source, node) for node in assigned))) + "\n"


def _is_of_the_package(statement: ast.stmt, *, first: bool) -> bool:
    """Return whether a statement is left out: a docstring, an import of another module of chestx, or one of types."""
    if ast.unparse(statement) in _IN_THE_HEAD:
        return True
    if isinstance(statement, ast.ImportFrom):
        return statement.module == "__future__" or (statement.module or "").startswith("chestx_cli")
    if isinstance(statement, ast.If):
        return ast.unparse(statement.test) == "TYPE_CHECKING"
    return first and isinstance(statement, ast.Expr)


def _names_of(tree: ast.Module) -> set[str]:
    """Return the functions, classes and constants that a module defines."""
    names = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    targets = [node.targets for node in tree.body if isinstance(node, ast.Assign)]
    return names | {
        inner.id for target in targets for one in target for inner in ast.walk(one) if isinstance(inner, ast.Name)
    }
