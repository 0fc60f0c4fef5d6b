"""The command line as a whole: help, exit codes, JSON, and what each start imports."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from rich.console import Console

import chestx_cli
from chestx_cli.cli.app import EXAMPLES
from chestx_cli.cli.console import show_record
from chestx_cli.core import options
from chestx_cli.core.record import Record, Stamp
from chestx_cli.records.sensitivity import LayerRow
from conftest import TINY, Chestx

ROOT = Path(__file__).parent.parent
HEAVY = (
    "torch",
    "torchvision",
    "pandas",
    "matplotlib",
    "sklearn",
    "scipy",
    "statsmodels",
    "onnx",
    "onnxruntime",
    "numpy",
)


@dataclass(frozen=True, kw_only=True)
class Measured(Record):
    """A record that is one table."""

    schema: typing.ClassVar[str] = "test/1"
    title: typing.ClassVar[str] = "Measured"

    rows: tuple[LayerRow, ...]


@pytest.mark.parametrize("words", ["--help", "--version", "train --help"])
def test_help_loads_nothing_heavy(words: str) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['chestx', *{words.split()!r}]\n"
        "from chestx_cli.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as done: assert not done.code\n"
        f"print('loaded:', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=plain_env())
    assert result.stdout.strip().endswith("loaded: []")


def test_summaries_are_the_docstrings_first_sentences() -> None:
    told = {
        name: " ".join((getattr(chestx_cli, name).function.__doc__ or "").strip().partition("\n\n")[0].split())
        for name in chestx_cli.STAGES
    }
    assert told == chestx_cli.STAGES


def loaded_by(words: list[str], env: dict[str, str]) -> tuple[str, set[str]]:
    """Return what a fresh process prints for a command line, and the modules that it then holds."""
    code = (
        f"import sys\nsys.argv = ['chestx', *{words!r}]\nfrom chestx_cli.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\nprint('loaded:', *sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**plain_env(), **env}
    )
    said, _, modules = result.stdout.rpartition("loaded:")
    return said, set(modules.split())


def test_the_version_is_told_without_typer() -> None:
    said, modules = loaded_by(["--version"], {})
    assert said == f"chestx {chestx_cli.__version__}\n"
    assert not {"typer", "rich", "pydantic"} & modules


def test_networks_are_built_without_the_compiler_whose_question_is_still_answered() -> None:
    code = (
        "import sys\n"
        "from chestx_cli.networks.backbones import BACKBONES\n"
        "BACKBONES['resnet18'].build()\n"
        "before = 'torch._dynamo' in sys.modules\n"
        "from torchvision.ops.roi_align import is_compile_supported as asked\n"
        "answers = asked('cpu'), asked('meta')\n"
        "from torch._dynamo.utils import is_compile_supported as real\n"
        "print(before, answers == (real('cpu'), real('meta')), asked is real)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=plain_env())
    assert result.stdout.split() == ["False", "True", "False"]


def test_a_torchvision_that_asks_the_compiler_for_more_gets_it(tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text(
        "from torch._dynamo.utils import is_compile_supported, counters\nimport torch._dynamo\n"
    )
    code = (
        "import sys\n"
        "from chestx_cli.networks.backbones import load_torchvision\n"
        "found = load_torchvision()\n"
        "import torch._dynamo.utils as real\n"
        "print(found.__file__, found.counters is real.counters, load_torchvision() is found)"
    )
    env = {**plain_env(), "PYTHONPATH": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert result.stdout.split() == [str(tmp_path / "torchvision.py"), "True", "True"]


def test_help_of_one_command_imports_no_other() -> None:
    said, modules = loaded_by(["prune", "--help"], {"TERM": "dumb"})
    assert "--amount" in said
    assert "chestx_cli.commands.benchmark" not in modules
    said, modules = loaded_by(["--help"], {"TERM": "dumb", "COLUMNS": "200"})
    assert all(name in said and summary in said for name, summary in chestx_cli.STAGES.items())
    assert not [name for name in modules if name.startswith("chestx_cli.commands.")]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("chestx spl", "split"),
        ("chestx prune --ste", "--steps"),
        ("chestx train --backbone mobil", "mobilenet_v3_large"),
    ],
)
def test_completion_knows_commands_options_and_choices(typed: str, expected: str) -> None:
    env = {"_CHESTX_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    said, modules = loaded_by([], env)
    assert expected in said.split()
    assert not {"torch", "numpy", "rich.table"} & modules


def plain_env() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in {"CHESTX_TINY_BACKBONE", "PYTHONPATH"}}


@pytest.mark.parametrize("name", chestx_cli.STAGES)
def test_every_command_has_the_shared_options_and_an_example(chestx: Chestx, name: str) -> None:
    outcome = chestx(name, "--help", env={"COLUMNS": "200", "TERM": "dumb"})
    assert outcome.code == 0
    for said in ("--json", "--seed", "--debug", "Example", *EXAMPLES[name]):
        assert said in outcome.out
    stage = getattr(chestx_cli, name)
    for option, (_, _, opt) in stage.options.items():
        assert opt.argument or opt.flag_of(option) in outcome.out


def test_commands_of_a_record_can_be_typed_again(finished: Path) -> None:
    record = json.loads((finished / "variants" / "iterative-2x20" / "variant.json").read_text())
    words = shlex.split(record["stamp"]["command"])
    assert words[:2] == ["chestx", "prune"]
    assert words[words.index("--steps") + 1] == "2"
    assert "--amount" not in words


def test_command_line_shows_what_differs_from_the_default() -> None:
    line = options.command_line(
        "sensitivity", chestx_cli.sensitivity.function, {"study": Path("a b"), "amounts": (0.5, 0.75), "parent": "x"}
    )
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
    assert "chestx train DATA" in outcome.err


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
    assert "bug in chestx: RuntimeError in test_cli.py" in outcome.err
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


def test_cli_reference_is_up_to_date() -> None:
    result = subprocess.run(
        [sys.executable, "-c", "from make_cli_reference import cli_reference; print(cli_reference(), end='')"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT / "docs",
        env=plain_env(),
    )
    assert (ROOT / "docs" / "cli.md").read_text() == result.stdout, "run make docs"


def readme_commands() -> list[str]:
    """Return the chestx commands that the README shows."""
    text = (ROOT / "README.md").read_text()
    lines = [
        line.removeprefix("$ ").strip()
        for block in re.findall(r"```\w*\n(.*?)```", text, re.S)
        for line in block.splitlines()
    ]
    return [line.partition("  #")[0].strip() for line in lines if line.startswith("chestx ")]


def test_readme_commands_are_true() -> None:
    commands = readme_commands()
    shown = {shlex.split(command)[1] for command in commands}
    assert set(chestx_cli.STAGES) <= shown | {"demo"}
    for command in commands:
        words = shlex.split(command)[1:]
        stage = getattr(chestx_cli, words[0])
        known = {opt.flag_of(name) for name, (_, _, opt) in stage.options.items()} | {"--json", "--debug"}
        assert {word for word in words if word.startswith("--")} <= known, command


def test_examples_in_shell_and_python_type_the_same_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("example_study", ROOT / "examples" / "study.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    typed: list[str] = []

    class Recorder:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            stage = getattr(chestx_cli, name)

            def record(*args: object, **kwargs: object) -> Any:
                values = dict(stage.__signature__.bind(*args, **kwargs).arguments)
                values.pop("study")
                typed.append(options.command_line(name, stage.function, values))
                return MagicMock(rows=[])

            return record

    monkeypatch.setattr(example, "chestx", Recorder())
    monkeypatch.setattr(example, "print", lambda *_: None, raising=False)
    example.run_study(Path("data"), tmp_path)
    lines = (ROOT / "examples" / "study.sh").read_text().replace('"$data"', "data").replace(' "$@"', "").splitlines()
    shell = []
    for words in (shlex.split(line)[1:] for line in lines if line.startswith("chestx ")):
        stage = getattr(chestx_cli, words[0])
        flags = {opt.flag_of(name): (name, kind) for name, (_, kind, opt) in stage.options.items()}
        values: dict[str, object] = {"data": Path("data")} if "data" in words else {}
        for flag, value in itertools.pairwise(words):
            if flag in flags:
                name, kind = flags[flag]
                values[name] = next((k(value) for k in (int, float) if k in (kind, *typing.get_args(kind))), value)
        shell.append(options.command_line(words[0], stage.function, values))
    assert typed == shell


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
