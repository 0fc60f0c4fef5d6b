"""The example notebook runs, its stored output is current, and it contains no trace of the machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tools.notebook import NOTEBOOK, executed


def shown(notebook: dict[str, Any]) -> list[list[tuple[str, ...]]]:
    """Return for each cell the kinds of its outputs, the class of a record, and the headings of its table.

    Not the numbers: another processor rounds otherwise, and a training goes another way.
    """
    cells = []
    for cell in notebook["cells"]:
        outputs = []
        for output in cell.get("outputs", ()):
            data = {kind: "".join(part) for kind, part in output.get("data", {}).items()}
            record = re.findall(r"^<\w+:", data.get("text/plain", ""))
            headings = re.findall(r"<th>(.*?)</th>", data.get("text/html", ""))
            outputs.append((output["output_type"], output.get("name", ""), *sorted(data), *record, *headings))
        cells.append(outputs)
    return cells


@pytest.mark.slow
def test_the_notebook_shows_what_is_stored_in_it(tmp_path: Path) -> None:
    for package in ("nbclient", "nbformat", "ipykernel"):
        pytest.importorskip(package)
    stored = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    now = executed(tmp_path)
    assert shown(now) == shown(stored), "run python -m tools.notebook"
    records = {first for cell in shown(stored) for output in cell for first in output if first.startswith("<")}
    assert records >= {"<SplitRecord:", "<VariantRecord:", "<EvaluationRecord:", "<ReportRecord:", "<PredictRecord:"}
    assert (tmp_path / "study" / "report" / "index.html").is_file()
    assert not any(output.get("name") == "stderr" for cell in now["cells"] for output in cell.get("outputs", ()))


def test_the_notebook_names_no_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    outputs = json.dumps([cell.get("outputs") for cell in json.loads(text)["cells"]])
    assert not re.search(r"/(home|root|tmp|work|usr|Users|var|private)/", text)
    assert not re.search(r"\d\d:\d\d:\d\d|file:|site-packages", outputs)
