"""Documentation: the command reference, the README's commands and the examples are correct."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

import chestx_cli
from chestx_cli.command_table import SUMMARIES
from chestx_cli.core.errors import NOT_REACHABLE
from conftest import IMAGE_SIZE_PX, TINY, Chestx, plain_env, write_images
from support.dicom_files import write_dicom

ROOT = Path(__file__).parents[2]
HOW_TO = [ROOT / "docs" / "start.md", *sorted((ROOT / "docs" / "howto").glob("*.md"))]
PAGES = [
    ROOT / "README.md",
    *HOW_TO,
    *(ROOT / "docs" / name for name in ("index.md", "honesty.md", "troubleshooting.md")),
]
# A text of fewer fixed characters could be anything.
FEWEST_WORDS_CHARACTERS = 10


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


def blocks_of(page: Path, *languages: str) -> list[str]:
    """Return the fenced blocks of a page, of some languages or of all."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)
    return [block for language, block in found if not languages or language in languages]


def commands_of(page: Path, *languages: str) -> list[str]:
    """Return the chestx commands that a page shows."""
    lines = [line.removeprefix("$ ").strip() for block in blocks_of(page, *languages) for line in block.splitlines()]
    return [line.partition("  #")[0].strip() for line in lines if line.startswith("chestx ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_pages_show_exist_with_their_options(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    inline = re.findall(r"`(chestx [a-z][^`\n]*)`", text)
    for command in (*commands_of(page), *inline):
        words = [word for word in shlex.split(command.replace("&&", "")) if word != "..."][1:]
        assert words[0] in SUMMARIES, command
        stage = getattr(chestx_cli, words[0])
        known = {opt.flag_of(name) for name, (_, _, opt) in stage.options.items()}
        known |= {"--json", "--debug", "--help", "--config"}
        assert {word for word in words if word.startswith("--")} <= known | off_switches(stage), command


def off_switches(stage: Any) -> set[str]:
    return {opt.flag_off(name) for name, (declared, _, opt) in stage.options.items() if declared.default is True}


# What makes the commands of a page small enough for a test: a tiny network and few steps.
FEW_STEPS = ("--round-to", "1", "--finetune-epochs", "1", "--batch-size", "16")
SMALL: dict[str, tuple[str, ...]] = {
    "train": (*TINY, "--epochs", "2", "--batch-size", "16"),
    "compress": ("--time-budget", "0.02", *FEW_STEPS),
    "benchmark": ("--rounds", "1", "--duration", "0.05"),
    "split": ("--image-size", str(IMAGE_SIZE_PX)),
}
# Pages that begin with an empty folder; the others begin with a finished study.
FROM_NOTHING = ("start.md", "folds.md", "dicom.md", "patients.md")


def small(words: list[str]) -> list[str]:
    """Return a command with the options that make it small."""
    removes_channels = words[0] == "prune" and {"structured", "guided"} & set(words)
    return [*words, *(FEW_STEPS if removes_channels else SMALL.get(words[0], ()))]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the images that the pages name, to work in."""
    write_images(tmp_path / "data")
    write_images(tmp_path / "other", first=500)
    for label, level in (("NORMAL", 90), ("PNEUMONIA", 160)):
        (tmp_path / "dicom" / label).mkdir(parents=True)
        for index in range(12):
            grey = np.random.default_rng(index + level).normal(level, 25, (40, 40)).clip(0, 255).astype(np.uint8)
            write_dicom(tmp_path / "dicom" / label / f"{index}", grey, patient=f"{label}-{index}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.name)
def test_the_commands_of_a_how_to_do_what_it_says(page: Path, workplace: Path, finished: Path, chestx: Chestx) -> None:
    if page.name not in FROM_NOTHING:
        shutil.copytree(finished, workplace / "study", copy_function=os.link)
    commands = commands_of(page, "sh")
    assert commands or blocks_of(page, "python")
    for command in commands:
        outcome = chestx(*small(shlex.split(command)[1:]))
        # In so little time the limits need not be met.
        done = (0, NOT_REACHABLE) if " compress " in command else (0,)
        assert outcome.code in done, f"{command}\n{outcome.out}\n{outcome.err}"
    names: dict[str, Any] = {}
    for block in blocks_of(page, "python"):
        exec(compile(block, str(page), "exec"), names)  # noqa: S102 - the page's own examples


def message_patterns() -> list[re.Pattern[str]]:
    """Return the message texts of the source as patterns, with inserted values left open."""
    found = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else None for part in node.values]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                parts = [node.value]
            else:
                continue
            if sum(len(part or "") for part in parts) >= FEWEST_WORDS_CHARACTERS:
                found.append(re.compile("".join(".+?" if part is None else re.escape(part) for part in parts)))
    return found


def test_every_message_of_the_troubleshooting_page_is_in_the_source() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^### (.+?) \{ #[\w-]+ \}$", page, re.M)
    assert len(messages) == len(re.findall(r"^### ", page, re.M)) >= 20
    patterns = message_patterns()
    for message in messages:
        assert any(pattern.fullmatch(message) for pattern in patterns), message
    assert not any(pattern.fullmatch("the moon is in STUDY/") for pattern in patterns)


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
