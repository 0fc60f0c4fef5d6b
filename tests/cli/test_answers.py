"""The answer of every command: one screen of 80 columns, and in JSON; shares in per cent; errors as JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import chestx_cli
from chestx_cli.cli.console import MAX_LINES, show_record
from chestx_cli.command_table import SUMMARIES
from chestx_cli.commands import demo
from chestx_cli.core.record import NOT_A_DEVICE, Record
from chestx_cli.records.commands import DemoRecord
from chestx_cli.reporting.decision import DO_NOT_SHIP, SHIP
from conftest import IMAGE_SIZE_PX, TINY, Chestx
from support.small_demo import SMALL

QUICK = ("--rounds", "1", "--duration", "0.02", "--runtimes", "onnxruntime")
# A command that needs no other options runs as its first example shows.
COMMANDS: dict[str, tuple[str, ...]] = {
    **{name: tuple(shlex.split(getattr(chestx_cli, name).examples[0])[1:]) for name in SUMMARIES},
    "split": ("split", "DATA", "--image-size", str(IMAGE_SIZE_PX)),
    "train": ("train", *TINY, "--epochs", "3", "--batch-size", "16"),
    "sensitivity": ("sensitivity",),
    "sensitivity of groups": ("sensitivity", "--structured"),
    "prune": ("prune",),
    "distill": ("distill", "--backbone", "tiny", "--weights", "none", "--epochs", "1", "--batch-size", "16"),
    "quantize": ("quantize",),
    "compare": ("compare", "baseline", "oneshot-50"),
    "benchmark": ("benchmark", *QUICK),
    "export": ("export", "dynamic-int8", "--out", "BUNDLE", "--anyway"),
    "predict": ("predict", "DATA"),
    "predict into a file": ("predict", "DATA", "--csv", "TABLE"),
    "compress": (
        *("compress", "--max-size-mb", "1", "--max-drop", "1", "--criteria", "l2", "--threads", "1", "--round-to", "1"),
        *("--time-budget", "0.0001"),
    ),
    "demo": ("demo", "--out", "DEMO", "--images", "60"),
    # Its answer after the work is that of tests/commands/test_study.py.
    "study": ("study", "DATA", "--study", "PLANNED", "--weights", "none", "--dry-run"),
}
# A demonstration shows the answers of all its commands in one sentence each, then its own.
MAX_DEMO_LINES = 60
WIDTHS = (80, 120)
# Runs commands one after the other in one process whose stdout is a terminal; a line of its own ends each.
ON_A_TERMINAL = """
import json, sys
from chestx_cli.cli import streams
from chestx_cli.cli.main import main
from chestx_cli.commands import demo
streams.prepare()
# Once for the process, as for one command.
streams.prepare = lambda: None
given = json.load(sys.stdin)
demo.WHOLE = demo.Extent(**given["extent"])
for words in given["commands"]:
    sys.argv = ["chestx", *words]
    try:
        main()
    except SystemExit as done:
        code = done.code or 0
    print(f"== {words[0]} {code}", flush=True)
"""


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


def typed(command: str, study: Path, data: Path) -> list[str]:
    """Return what is typed for a command in a study."""
    beside = study.parent
    filled = {"DATA": str(data), "BUNDLE": str(beside / "bundle"), "DEMO": str(beside / "demo")}
    filled |= {"PLANNED": str(beside / "planned"), "TABLE": str(beside / "predictions.csv")}
    words = [filled.get(word, word) for word in COMMANDS[command]]
    return words if command in {"demo", "study", "config"} else [*words, "--study", str(study)]


@pytest.mark.parametrize("command", COMMANDS)
def test_an_answer_is_one_screen(
    chestx: Chestx, own: Path, data: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "WHOLE", SMALL)
    words = typed(command, own, data)
    outcome = chestx(*words, "--json")
    assert outcome.code == 0, outcome.err
    document = outcome.json()
    assert list(document)[:2] == ["schema", "answer"]
    assert document["answer"]["sentence"]
    require_typed(document["answer"]["next_command"])
    shown = chestx(*words)
    assert shown.code == 0, shown.err
    assert document["answer"]["sentence"] in shown.out
    lines = shown.out.splitlines()
    assert len(answer_of(command, lines)) <= MAX_LINES, shown.out
    assert len(lines) <= MAX_DEMO_LINES, shown.out


def answer_of(command: str, lines: list[str]) -> list[str]:
    """Return the lines of the last answer: `demo` also prints those of its commands."""
    return lines[lines.index(DemoRecord.title) :] if command == "demo" else lines


def on_a_terminal(script: str, given: dict[str, Any], columns: int) -> str:
    """Return the screen lines of a process on a terminal with this many columns."""
    pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}}
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        env={**env, "TERM": "xterm-256color"},
    )
    os.close(theirs)
    assert process.stdin is not None
    process.stdin.write(json.dumps(given).encode())
    process.stdin.close()
    content = b""
    # The end of a terminal whose other side is closed is an error.
    with contextlib.suppress(OSError):
        while part := os.read(ours, 65536):
            content += part
    os.close(ours)
    assert process.wait() == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", content.decode()).replace("\r\n", "\n")


@pytest.mark.parametrize("columns", WIDTHS)
def test_every_answer_fits_a_real_terminal(own: Path, data: Path, columns: int) -> None:
    given = {
        "extent": dataclasses.asdict(SMALL),
        "commands": [typed(command, own, data) for command in COMMANDS],
    }
    text = on_a_terminal(ON_A_TERMINAL, given, columns)
    parts = re.split(r"^== (\w+) (\d+)\n", text, flags=re.MULTILINE)
    seen = [
        (command, part, int(code)) for part, command, code in zip(parts[::3], parts[1::3], parts[2::3], strict=False)
    ]
    assert [command for command, _, _ in seen] == [words[0] for words in COMMANDS.values()]
    for command, part, code in seen:
        assert code == 0, (command, part)
        # A command that is to be copied stays on one line.
        lines = [line for line in answer_of(command, part.splitlines()) if not line.startswith(("$ ", "Next: "))]
        assert lines[-1] == NOT_A_DEVICE
        assert max(map(len, lines)) <= columns, (command, part)
        assert len(lines) + 1 <= MAX_LINES, (command, part)


class Shown(io.StringIO):
    """A terminal that records its output."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", WIDTHS)
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
