"""Inserts results between the markers of a document."""

from __future__ import annotations

from pathlib import Path

from chestx_cli.core.files import write_atomic


def insert(document: Path, name: str, text: str, *, by: str = "benchmarks") -> None:
    """Replace the text between the markers of this name in a document; exits if it has none."""
    begin, end = f"<!-- {name}: written by the {by} -->", f"<!-- {name}: end -->"
    before, found, rest = document.read_text(encoding="utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise SystemExit(f"{document} has no lines {begin!r} and {end!r}: add them where the text belongs")
    write_atomic(document, f"{before}{begin}\n\n{text}\n\n{end}{after}")
