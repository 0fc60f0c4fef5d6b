"""Imports at start-up: nothing heavy for help, and only the modules of one command for that command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import chestx_cli
from chestx_cli.command_table import SUMMARIES
from conftest import HEAVY, plain_env
from tools.command_table import TABLE, table


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


def test_the_table_of_commands_is_up_to_date() -> None:
    assert TABLE.read_text(encoding="utf-8") == table(), "run make docs"


def loaded_by(words: list[str], env: dict[str, str]) -> tuple[str, set[str]]:
    """Return the output of a fresh process for a command line, and its loaded modules."""
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


def test_computing_reproducibly_does_not_load_the_compiler() -> None:
    code = (
        "import sys, torch\n"
        "from chestx_cli.networks.devices import reproducible\n"
        "with reproducible(1):\n"
        "    assert torch.are_deterministic_algorithms_enabled()\n"
        "    assert not torch.is_deterministic_algorithms_warn_only_enabled()\n"
        "assert not torch.are_deterministic_algorithms_enabled()\n"
        "assert not {name for name in sys.modules if name.startswith('torch._inductor')}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=plain_env())


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
    assert all(name in said and summary in said for name, summary in SUMMARIES.items())
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
