"""The rooms of the package, from its imports: `python -m tools.rooms` draws docs/figures/rooms.svg."""

from __future__ import annotations

import ast
from functools import cache
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "chestx_cli"
PICTURE = ROOT / "docs" / "figures" / "rooms.svg"
# From the lowest up.
ROOMS = (
    "core",
    "settings",
    "records",
    "store",
    "data",
    "evaluation",
    "networks",
    "inference",
    "compression",
    "cells",
    "reporting",
    "commands",
    "cli",
)
ROW_PX, COLUMN_PX, TEXT_PX, HEAD_PX = 46, 40, 590, 110
INK, FAINT, MARK = "#1a1a1a", "#e6e6e6", "#0072b2"


def name_of(path: Path) -> str:
    """Return a module's name by its path in the package, such as `store/directory`; for `__init__`, the room's name."""
    return path.relative_to(SOURCE).with_suffix("").as_posix().removesuffix("__init__").strip("/")


MODULES = {name_of(path): path for path in sorted(SOURCE.rglob("*.py"))}
DOTTED = {".".join(["chestx_cli", *filter(None, name.split("/"))]): name for name in MODULES}


@cache
def imports_of(module: str) -> frozenset[str]:
    """Return all imports of a module, at any level; modules of this package by path."""
    imported = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            # A name imported from a package may be a module.
            inside = [name for alias in node.names if (name := f"{node.module}.{alias.name}") in DOTTED]
            imported.update(inside or [node.module])
        elif isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
    return frozenset(DOTTED.get(name, name) for name in imported)


def own_imports(module: str) -> set[str]:
    """Return the modules of the package that a module imports, except the package itself, which has the version."""
    return {name for name in imports_of(module) if name in MODULES and name}


def room_of(module: str) -> str:
    """Return the room of a module."""
    return module.partition("/")[0]


def sentence_of(folder: str) -> str:
    """Return the first sentence of a room's or folder's docstring."""
    text = ast.get_docstring(ast.parse((SOURCE / folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split())


def picture() -> str:
    """Return the rooms as SVG, the highest first, with a mark for each lower room that its modules import."""
    rows = tuple(reversed(ROOMS))
    width, height = TEXT_PX + COLUMN_PX * len(ROOMS) + 20, HEAD_PX + ROW_PX * len(rows) + 10
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" fill="{INK}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="16" y="{HEAD_PX - 12}">A room (and its modules) …</text>',
        f'<text x="{TEXT_PX - 20}" y="{HEAD_PX - 12}" text-anchor="end">… imports (number of imports)</text>',
    ]
    for column, room in enumerate(ROOMS):
        x = TEXT_PX + COLUMN_PX * column + COLUMN_PX // 2
        lines.append(f'<text x="{x}" y="{HEAD_PX - 12}" transform="rotate(-50 {x} {HEAD_PX - 12})">{room}</text>')
    for row, room in enumerate(rows):
        y = HEAD_PX + ROW_PX * row
        members = [name for name in MODULES if room_of(name) == room and MODULES[name].name != "__init__.py"]
        lines += [
            f'<line x1="10" x2="{width - 10}" y1="{y}" y2="{y}" stroke="{FAINT}"/>',
            f'<text x="16" y="{y + 20}" font-size="15" font-weight="bold">{room} <tspan font-weight="normal" '
            f'font-size="12">({len(members)})</tspan></text>',
            f'<text x="16" y="{y + 37}" font-size="12">{escape(sentence_of(room))}</text>',
        ]
        for column, other in enumerate(ROOMS):
            x = TEXT_PX + COLUMN_PX * column + COLUMN_PX // 2
            n = sum(room_of(name) == other for module in members for name in own_imports(module))
            if other == room:
                lines.append(f'<rect x="{x - 6}" y="{y + 17}" width="12" height="12" fill="{FAINT}"/>')
            elif n:
                lines += [
                    f'<circle cx="{x}" cy="{y + 23}" r="14" fill="{MARK}"/>',
                    f'<text x="{x}" y="{y + 27}" font-size="11" fill="white" text-anchor="middle">{n}</text>',
                ]
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
