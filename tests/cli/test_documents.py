"""The documents: the reference of the commands, the README's commands and the examples are true."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shlex
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

import chestx_cli
from chestx_cli.command_table import SUMMARIES
from conftest import plain_env

ROOT = Path(__file__).parents[2]


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
    assert set(SUMMARIES) <= shown | {"demo"}
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
                typed.append(stage.command_line(**values))
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
        shell.append(stage.command_line(**values))
    assert typed == shell
