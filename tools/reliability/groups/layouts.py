"""Realistic folders and manifests: every image is found, and every file left out is counted."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from chestx_cli.core.errors import ChestxError, DataError
from chestx_cli.data.images.sniffing import BY_CONTENT
from chestx_cli.data.sources.listing import Listing, find_images
from chestx_cli.data.sources.manifest_files import Wish
from chestx_cli.data.sources.names import class_key
from tools.reliability.drawn_layouts import Layout, draw_layout
from tools.reliability.drawn_tables import Table, draw_table
from tools.reliability.registry import Setting
from tools.reliability.results import MAX_FAILURES, Figure

T = TypeVar("T")


def measure(setting: Setting) -> list[Figure]:
    """Return one row each for readable folders and tables, and for those that must be refused."""
    folders = [
        (layout.description, layout.images is not None, lambda layout=layout: fault_of(layout, setting.work / "layout"))
        for layout in _drawn(draw_layout, setting.choose(short=150, full=5_000))
    ]
    tables = [
        (table.description, not table.error, lambda table=table: fault_of_table(table, setting.work / "manifest.csv"))
        for table in _drawn(draw_table, setting.choose(short=150, full=5_000))
    ]
    found = "every image is found with its class and part, and every other file is counted as left out"
    read = "every row is read: path, class, patient and part"
    return [
        *_figures("layouts of folders", folders, found),
        *_figures("manifests by encoding, delimiter and spelling", tables, read),
    ]


def _drawn(draw: Callable[[random.Random], T], cases: int) -> list[T]:
    # For reproducible draws, not for security.
    return [draw(random.Random(f"{draw.__name__} {number}")) for number in range(cases)]  # noqa: S311


def _figures(what: str, cases: Sequence[tuple[str, bool, Callable[[], str]]], criterion: str) -> list[Figure]:
    figures = []
    for readable in (True, False):
        started_s = time.perf_counter()
        mine = [(number, description, run) for number, (description, fits, run) in enumerate(cases) if fits == readable]
        failures = [
            f"{what} {number} ({description}): {wrong}" for number, description, run in mine if (wrong := run())
        ]
        figures.append(
            Figure(
                test=f"{what}, drawn with what must be found{'' if readable else ', that must be refused'}",
                passed=len(mine) - len(failures),
                total=len(mine),
                criterion=criterion if readable else "the error names the fault",
                seconds=time.perf_counter() - started_s,
                failures=tuple(failures[:MAX_FAILURES]),
            )
        )
    return figures


def fault_of(layout: Layout, place: Path) -> str:
    """Return the fault in reading a layout, if any; the layout is written to `place` and removed."""
    try:
        data = layout.write(place)
        listing = find_images(data, leave_out=place / "study", wish=Wish(resplit=layout.resplit))
    except DataError as error:
        if layout.images is not None:
            return f"refused: {error.fact}"
        return "" if layout.error in error.fact else f"another error: {error.fact}"
    except ChestxError as error:
        return f"another kind of error: {error.fact}"
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if layout.images is None:
        return f"read instead of refused: {layout.error}"
    return _difference(layout, listing)


def _difference(layout: Layout, found: Listing) -> str:
    parts = found.parts or (None,) * len(found.paths)
    here = {path: (class_key(label), part) for path, label, part in zip(found.paths, found.labels, parts, strict=True)}
    expected = {path: (class_key(label), part) for path, (label, part) in (layout.images or {}).items()}
    if here != expected:
        return f"found {sorted(here.items() - expected.items())[:3]}, not {sorted(expected.items() - here.items())[:3]}"
    left_out = sum(n for (_, kind), n in found.sifted.items() if kind != BY_CONTENT)
    if len(here) + left_out != layout.n_files:
        return f"{len(here)} images and {left_out} files left out, of {layout.n_files} files"
    return ""


def fault_of_table(table: Table, path: Path) -> str:
    """Return the fault in reading a manifest, if any."""
    path.write_bytes(table.content)
    try:
        listing = find_images(path, leave_out=path.parent / "study")
    except DataError as error:
        return "" if table.error and table.error in error.fact else f"refused: {error.fact}"
    if table.error:
        return f"read instead of refused: {table.error}"
    none = (None,) * len(listing.paths)
    columns = (listing.paths, map(class_key, listing.labels), listing.groups or none, listing.parts or none)
    here = list(zip(*columns, strict=True))
    expected = [(row, class_key(label), group, part) for row, label, group, part in table.rows]
    return "" if here == expected else f"read {here[:2]}, not {expected[:2]}"
