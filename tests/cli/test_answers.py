"""Every command's answer: one screen of 80 columns, in JSON too; shares in per cent; errors as JSON."""

from __future__ import annotations

import io
import itertools
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

import chestx_cli
from chestx_cli.cli.console import MAX_LINES, show_record
from chestx_cli.core.record import Record
from chestx_cli.reporting.decision import DO_NOT_SHIP, SHIP
from conftest import IMAGE_SIZE_PX, TINY, Chestx

QUICK = ("--rounds", "1", "--duration", "0.02", "--runtimes", "onnxruntime")
COMMANDS = {
    "split": ("split", "DATA", "--image-size", str(IMAGE_SIZE_PX)),
    "train": ("train", *TINY, "--epochs", "3", "--batch-size", "16"),
    "sensitivity": ("sensitivity",),
    "sensitivity of groups": ("sensitivity", "--structured"),
    "prune": ("prune",),
    "quantize": ("quantize",),
    "evaluate": ("evaluate",),
    "compare": ("compare", "baseline", "oneshot-50"),
    "benchmark": ("benchmark", *QUICK),
    "export": ("export", "dynamic-int8", "--out", "BUNDLE", "--anyway"),
    "report": ("report",),
}


@pytest.fixture
def own(finished: Path, tmp_path: Path) -> Path:
    """Return a finished study to work in."""
    shutil.copytree(finished, tmp_path / "study")
    return tmp_path / "study"


def require_typed(line: str) -> None:
    """Fail unless a command line of chestx has a command, options and choices that are there."""
    if line.startswith("chestx "):
        _, command, *words = line.split()
        options = {opt.flag_of(name): (name, opt) for name, (_, _, opt) in getattr(chestx_cli, command).options.items()}
        for flag, value in itertools.pairwise([*words, ""]):
            if flag.startswith("--"):
                name, opt = options[flag]
                assert opt.choices is None or opt.check(name, value) == value


@pytest.mark.parametrize("command", COMMANDS)
def test_an_answer_is_one_screen(chestx: Chestx, own: Path, data: Path, tmp_path: Path, command: str) -> None:
    filled = {"DATA": str(data), "BUNDLE": str(tmp_path / "bundle")}
    words = [filled.get(word, word) for word in COMMANDS[command]]
    outcome = chestx(*words, "--study", own, "--json")
    assert outcome.code == 0, outcome.err
    document = outcome.json()
    assert list(document)[:2] == ["schema", "answer"]
    assert document["answer"]["sentence"]
    require_typed(document["answer"]["next_command"])
    shown = chestx(*words, "--study", own)
    assert shown.code == 0, shown.err
    assert document["answer"]["sentence"] in shown.out
    assert len(shown.out.splitlines()) <= MAX_LINES, shown.out


class Shown(io.StringIO):
    """A terminal that keeps what it shows."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [80, 120])
def test_the_answer_of_many_long_names_fits_a_terminal(own: Path, columns: int) -> None:
    record: Record = chestx_cli.evaluate(study=own)
    assert record.answer is not None
    row = record.answer.rows[-1]
    rows = tuple(
        type(row)(**{**vars(row), "variant": f"structured-75-bn-scale-{n}-static-int8", "auroc": "0.998 0.95–1.00"})
        for n in range(4)
    )
    answer = type(record.answer)(sentence=record.answer.sentence, rows=rows, warnings=("Long " * 150, "Second " * 150))
    text = Shown()
    show_record(record.replace(answer=answer), Console(file=text, width=columns, color_system=None))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= columns, text.getvalue()
    assert text.getvalue().count("0.998 0.95–1.00") == len(rows)
    assert "--full" in text.getvalue()


def test_evaluate_says_of_every_variant_whether_to_ship_it(own: Path) -> None:
    record = chestx_cli.evaluate(study=own)
    assert record.answer is not None
    assert [row.variant for row in record.answer.rows] == [row.variant for row in record.rows]
    assert {row.ship for row in record.answer.rows} <= {SHIP, DO_NOT_SHIP}
    stored = json.loads((own / "variants" / "baseline" / "evaluation.test.json").read_text())
    assert "answer" not in stored


@pytest.mark.parametrize(("typed", "ratios"), [("0.7/0.15/0.15", "70/15/15"), ("70,15,15", "70/15/15")])
def test_shares_are_read_as_they_are_usually_written(
    chestx: Chestx, data: Path, tmp_path: Path, typed: str, ratios: str
) -> None:
    words = ("split", data, "--image-size", IMAGE_SIZE_PX, "--json")
    first, second = (
        chestx(*words, "--study", tmp_path / name, "--ratios", given).json()
        for name, given in (("a", typed), ("b", ratios))
    )
    assert first["split_csv_sha256"] == second["split_csv_sha256"]


def test_a_share_may_be_in_per_cent(chestx: Chestx, own: Path) -> None:
    made = chestx("prune", "--study", own, "--amount", "30%", "--json").json()
    assert made["options"]["amount"] == 0.3
    refused = chestx("prune", "--study", own, "--amount", "30")
    assert (refused.code, "write 30% for 0.3" in refused.err) == (2, True)
    refused = chestx("prune", "--study", own, "--amount", "half", env={"COLUMNS": "200"})
    assert "write 0.5 or 50%" in refused.err


def test_an_error_is_a_json_document_where_one_was_asked_for(chestx: Chestx, tmp_path: Path) -> None:
    outcome = chestx("evaluate", "--study", tmp_path / "nowhere", "--json")
    error = outcome.json()["error"]
    assert (outcome.code, error["exit_code"]) == (1, 1)
    assert error["fact"].startswith("no split in")
    assert error["remedy"] in outcome.err
