"""The command line as a whole: help, exit codes, JSON, and what every command has in common."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shlex
import subprocess
import sys
import typing
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

import chestx_cli
from chestx_cli.cli.console import show_record
from chestx_cli.command_table import SUMMARIES
from chestx_cli.core.record import Record, Stamp
from chestx_cli.records.sensitivity import LayerRow
from conftest import TINY, Chestx


@dataclass(frozen=True, kw_only=True)
class Measured(Record):
    """A record that is one table."""

    schema: typing.ClassVar[str] = "test/1"
    title: typing.ClassVar[str] = "Measured"

    rows: tuple[LayerRow, ...]


@pytest.mark.parametrize("name", SUMMARIES)
def test_every_command_has_the_shared_options_and_an_example(chestx: Chestx, name: str) -> None:
    outcome = chestx(name, "--help", env={"COLUMNS": "200", "TERM": "dumb"})
    assert outcome.code == 0
    stage = getattr(chestx_cli, name)
    assert stage.examples
    for said in ("--json", "--debug", "Example", *stage.examples):
        assert said in outcome.out
    for option, (_, _, opt) in stage.options.items():
        assert opt.argument or opt.flag_of(option) in outcome.out


def test_commands_of_a_record_can_be_typed_again(finished: Path) -> None:
    record = json.loads((finished / "variants" / "iterative-2x20" / "variant.json").read_text())
    words = shlex.split(record["stamp"]["command"])
    assert words[:2] == ["chestx", "prune"]
    assert words[words.index("--steps") + 1] == "2"
    assert "--amount" not in words


def test_command_line_shows_what_differs_from_the_default() -> None:
    line = chestx_cli.sensitivity.command_line(study=Path("a b"), amounts=(0.5, 0.75), parent="x")
    assert line == "chestx sensitivity --study 'a b' --amounts 0.5,0.75 --from x"


def test_json_is_the_only_thing_on_stdout(chestx: Chestx, study: Path) -> None:
    for words in (("prune",), ("evaluate",), ("sensitivity", "--layers", "conv1"), ("report",)):
        outcome = chestx(*words, "--study", study, "--json")
        document = json.loads(outcome.out)
        assert document["schema"].startswith("chestx.")
        assert document["stamp"]["environment"]["chestx-cli"] == chestx_cli.__version__


def test_python_and_shell_make_the_same_record(chestx: Chestx, study: Path) -> None:
    from_shell = chestx("evaluate", "--study", study, "--json").json()
    from_python = chestx_cli.evaluate(study=study).to_dict()
    for record in (from_shell, from_python):
        for changing in ("created", "duration_s"):
            del record["stamp"][changing]
    assert from_python == from_shell


def test_study_directory_from_the_environment(chestx: Chestx, study: Path) -> None:
    outcome = chestx("evaluate", "--json", env={"CHESTX_STUDY": str(study)})
    assert outcome.code == 0
    # Records are passed on: what was typed as a path is not in them.
    assert outcome.json()["stamp"]["command"] == "chestx evaluate --study DIR"
    assert str(study) not in outcome.out


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("train", "chestx train DATA"),
        ("sensitivity", "chestx split DATA"),
        ("prune", "chestx split DATA"),
        ("quantize", "chestx split DATA"),
        ("evaluate", "chestx split DATA"),
        ("benchmark", "chestx split DATA"),
        ("report", "chestx split DATA"),
    ],
)
def test_an_empty_study_names_the_command_that_fills_it(
    chestx: Chestx, tmp_path: Path, words: str, remedy: str
) -> None:
    extra = ("--weights", "none") if words == "train" else ()
    outcome = chestx(words, "--study", tmp_path / "s", *extra)
    assert outcome.code == 1
    assert remedy in outcome.err
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("words", ["sensitivity", "prune", "quantize", "evaluate", "benchmark"])
def test_a_study_without_baseline_names_train(chestx: Chestx, data: Path, tmp_path: Path, words: str) -> None:
    chestx("split", data, "--study", tmp_path / "s")
    outcome = chestx(words, "--study", tmp_path / "s")
    assert outcome.code == 1
    assert '"chestx train --study' in outcome.err


@pytest.mark.parametrize(
    "words",
    [
        "nosuchcommand",
        "train --nosuchoption",
        "train --backbone vgg99",
        "train --epochs 0",
        "train --lr -1",
        "train --epochs many",
        "train --loss hinge",
        "prune --method magic",
        "prune --amount 1.5",
        "quantize --method magic",
        "benchmark --rounds 0",
        "benchmark --duration inf",
        "prune --amount nan",
        "evaluate --threads 1000000",
        "split",
        "evaluate ../outside",
        "prune --name ../outside",
    ],
)
def test_what_cannot_be_meant_exits_with_2(chestx: Chestx, study: Path, words: str) -> None:
    command = words.split()
    extra = [] if command[0] in {"nosuchcommand"} else ["--study", str(study)]
    outcome = chestx(*command, *extra)
    assert outcome.code == 2, outcome.err
    assert "Traceback" not in outcome.err


def test_unknown_variants_are_named_with_those_there_are(chestx: Chestx, study: Path) -> None:
    for words in (("evaluate", "nope"), ("benchmark", "nope"), ("prune", "--from", "nope")):
        outcome = chestx(*words, "--study", study)
        assert outcome.code == 1
        assert "'nope'" in outcome.err
        assert "oneshot-50" in outcome.err


def test_an_interrupt_exits_with_130(chestx: Chestx, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("chestx_cli.inference.prediction.predict", interrupt)
    outcome = chestx("evaluate", "--study", study)
    assert outcome.code == 130
    assert "interrupted" in outcome.err


def test_a_bug_is_told_without_traceback_unless_asked(
    chestx: Chestx, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("something odd")

    monkeypatch.setattr("chestx_cli.inference.prediction.predict", fail)
    outcome = chestx("evaluate", "--study", study)
    assert outcome.code == 1
    assert "bug in chestx: RuntimeError in test_command_line.py" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("rows", [3, 40])
def test_no_cell_of_a_table_is_cut_on_a_narrow_console(rows: int) -> None:
    names = [f"structured-{number}-static-int8" for number in range(rows)]
    row = LayerRow(
        rank=1,
        layer="",
        kind="Conv2d",
        weights=1_234_567,
        mean_loss_increase=0.1,
        max_loss_increase=0.2,
        max_accuracy_drop=0.3,
        min_auroc=0.9,
    )
    record = Measured(
        stamp=Stamp(command="", options={}, inputs={}, environment={}, created="", duration_s=0.0),
        rows=tuple(dataclasses.replace(row, layer=name) for name in names),
    )
    text = io.StringIO()
    show_record(record, Console(file=text, width=60))
    lines = text.getvalue().splitlines()
    assert all(sum(name in line for line in lines) == 1 for name in names)
    assert text.getvalue().count("1,234,567") == rows
    # Few rows stand as columns, no more of them side by side than fit.
    assert rows == 40 or max(map(len, lines)) <= 60


def test_the_whole_study_as_real_processes(tmp_path: Path, data: Path) -> None:
    study = tmp_path / "study"
    commands = [
        ["train", str(data), *TINY, "--epochs", "2", "--batch-size", "16"],
        ["sensitivity", "--amounts", "0.5"],
        ["prune", "--method", "iterative", "--steps", "1", "--finetune-epochs", "1"],
        ["quantize"],
        ["evaluate"],
        ["benchmark", "--rounds", "1", "--duration", "0.02"],
        ["report"],
    ]
    for words in commands:
        result = subprocess.run(
            [sys.executable, "-c", "from chestx_cli.cli.main import main; main()", *words],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "CHESTX_STUDY": str(study)},
        )
        assert result.returncode == 0, f"{words}\n{result.stdout}\n{result.stderr}"
        assert "Not a medical device" in result.stdout
        assert "Traceback" not in result.stderr
    page = (study / "report" / "index.html").read_text()
    assert "<script" not in page
    assert "Not a medical device" in page
    assert {"baseline", "iterative-1x20", "dynamic-int8"} <= {path.name for path in (study / "variants").iterdir()}
