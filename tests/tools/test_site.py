"""The documentation site: built strictly from the pages and the code, without external resources."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

import chestx_cli
from chestx_cli.command_table import SUMMARIES
from chestx_cli.records.evaluation import ComparisonRow, EvaluationRecord
from tools.site.reference import python_page, records_page

ROOT = Path(__file__).parents[2]


def build(folder: Path, page: str, **files: str) -> tuple[int, str]:
    """Build a site of one page by the project's own configuration; return the exit code and what was printed."""
    pytest.importorskip("material")
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[0]
    config = config.replace("tools/site/hooks.py", str(ROOT / "tools" / "site" / "hooks.py"))
    (folder / "mkdocs.yml").write_text(config, encoding="utf-8")
    docs = folder / "docs"
    docs.mkdir()
    (docs / "howto").mkdir()
    (docs / "howto" / "python.md").write_text("# Python\n")
    (docs / "howto" / "predict.md").write_text("# Predict\n\n## In Python\n")
    (docs / "index.md").write_text(page)
    for name, content in files.items():
        (docs / name.replace("__", ".")).write_text(content)
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(folder / "mkdocs.yml")]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    done = subprocess.run(words, capture_output=True, text=True, env=env, cwd=ROOT)
    return done.returncode, done.stdout + done.stderr


def test_a_page_with_good_links_is_built(tmp_path: Path) -> None:
    (tmp_path / "SECURITY.md").write_text("# Security\n")
    page = "# Home\n\n[a](#home) [b](reference/records.md#evaluationrecord) [the promise](../SECURITY.md)\n"
    code, said = build(tmp_path, page)
    assert code == 0, said
    built = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "the promise (<code>SECURITY.md</code>)" in built
    assert (tmp_path / "site" / "reference" / "python.html").exists()


@pytest.mark.parametrize(
    ("page", "named"),
    [
        ("[a](missing.md)", "missing.md"),
        ("[a](#nowhere)", "#nowhere"),
        ("[a](howto/python.md#nowhere)", "#nowhere"),
        ("[a](../MISSING.md)", "MISSING.md"),
        ('<script src="https://example.org/a.js"></script>', "https://example.org/a.js"),
        ('<p style="background: url(//example.org/a.png)">a</p>', "//example.org/a.png"),
        ("![a](https://example.org/a.png)", "https://example.org/a.png"),
    ],
)
def test_what_is_broken_or_loaded_from_elsewhere_fails_the_build(tmp_path: Path, page: str, named: str) -> None:
    code, said = build(tmp_path, f"# Home\n\n{page}\n")
    assert code != 0
    assert named in said


def test_the_reference_has_every_parameter_and_every_field() -> None:
    page = python_page()
    for name in SUMMARIES:
        _, _, section = page.partition(f"\n## {name}\n")
        section = section.partition("\n## ")[0]
        assert SUMMARIES[name] in " ".join(section.split())
        assert all(f"\n| `{parameter}` |" in section for parameter in getattr(chestx_cli, name).options)
    records = records_page()
    for kind, heading in ((EvaluationRecord, "## EvaluationRecord"), (ComparisonRow, "### ComparisonRow")):
        _, _, section = records.partition(f"\n{heading}\n")
        section = section.partition("\n## ")[0].partition("\n### ")[0]
        own = [f.name for f in dataclasses.fields(kind) if f.name not in {"stamp", "notes", "answer"}]
        assert own == [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
    assert f"`{EvaluationRecord.schema}`" in records
