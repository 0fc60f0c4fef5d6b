"""Plugins: registrations of installed packages are available in every command; a failing plugin is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import HEAVY, PLAIN_PATH
from tools.rooms import DOTTED

COMMAND = """
from chestx_cli.registries import COMMANDS, Run, TabularRecord, col, stage
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class GreetingRecord(TabularRecord):
    schema: ClassVar[str] = "greeting/1"
    title: ClassVar[str] = "Greeting"
    words: str = col("Words")


@stage(examples=("chestx greet",))
def greet(run: Run) -> GreetingRecord:
    \"\"\"Say good morning.\"\"\"
    return GreetingRecord(stamp=run.stamp(), words="good morning")


COMMANDS.add("greet", greet)
"""
LAST_LINE = len(COMMAND.splitlines())


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """Return a folder to install packages in."""
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


def install(folder: Path, name: str, code: str) -> None:
    """Write a package of one module, with the entry point that makes it a plugin."""
    (folder / f"{name}.py").write_text(code, encoding="utf-8")
    metadata = folder / f"{name}-1.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.2\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(f"[chestx.plugins]\n{name} = {name}\n", encoding="utf-8")


def run(folder: Path, *words: object, python: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command line, or a program, where these packages are installed."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), PLAIN_PATH]), "COLUMNS": "120", "TERM": "dumb"}
    line = [sys.executable, *(["-c", python] if python else ["-m", "chestx_cli", *map(str, words)])]
    return subprocess.run(line, capture_output=True, text=True, check=False, env=env)


def test_a_command_of_a_plugin_is_listed_run_and_callable_without_anything_heavy(plugins: Path) -> None:
    install(plugins, "greeting", COMMAND)
    assert "Say good morning." in run(plugins, "--help").stdout
    assert "chestx greet" in run(plugins, "greet", "--help").stdout
    assert "good morning" in run(plugins, "greet").stdout
    # Its file does not postpone annotations.
    assert (
        "Returns\n-------\nGreetingRecord\n"
        in run(plugins, python="import chestx_cli as c; print(c.greet.__doc__)").stdout
    )
    code = (
        "import sys, chestx_cli\n"
        "from chestx_cli.cli.app import app_for\n"
        "app_for('')\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "print(loaded, chestx_cli.greet().words)"
    )
    assert run(plugins, python=code).stdout.split("\n")[0] == "[] good morning"


def test_entries_of_plugins_are_choices_behind_those_that_are_built_in(plugins: Path) -> None:
    code = (
        "from chestx_cli.registries import BACKBONES, Backbone\nBACKBONES.add('mine', Backbone(build=lambda: None))\n"
    )
    install(plugins, "backbone_of_mine", code)
    assert "convnext_tiny, mine" in " ".join(run(plugins, "train", "--help").stdout.split())
    unknown = run(plugins, "train", "--backbone", "other")
    assert unknown.returncode == 2
    assert unknown.stderr.strip().endswith("mine")


@pytest.mark.parametrize(
    ("code", "reason", "line"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'", 1),
        ("1 / 0", "ZeroDivisionError: division by zero", 1),
        (
            "from chestx_cli.registries import BACKBONES, Backbone\nBACKBONES.add('resnet18', Backbone(build=int))",
            "there is a backbone 'resnet18' already; choose another name",
            2,
        ),
        (COMMAND.replace("greet", "split"), "there is a command 'split' already; choose another name", LAST_LINE),
        (
            "from chestx_cli.registries import METRICS\n@METRICS.register\ndef mine(truth, p): return 1",
            'a metric is registered without a name; write register("NAME")',
            2,
        ),
        (
            "from chestx_cli.registries import METRICS\n@METRICS.register('a, b')\ndef mine(truth, p): return 1",
            "'a, b' cannot be the name of a metric; use letters, digits, spaces and _ - . ( ) only",
            2,
        ),
        (
            "from chestx_cli.registries import CRITERIA\n@CRITERIA.register('mine')\ndef mine(group): return None",
            "the pruning criterion 'mine' is of type function; it has to be of type Criterion",
            2,
        ),
        (
            "from chestx_cli.registries import LOSSES\nLOSSES.add('mine', 1)",
            "the loss 'mine' is of type int; it has to be a function",
            2,
        ),
        (
            COMMAND.replace('@stage(examples=("chestx greet",))', ""),
            "the command 'greet' is of type function; it has to be of type Command",
            LAST_LINE,
        ),
    ],
)
@pytest.mark.parametrize("words", [("--help",), ("train",), ("report", "--help")])
def test_a_plugin_that_cannot_be_loaded_is_named_with_what_to_do(
    plugins: Path, code: str, reason: str, line: int, words: tuple[str, ...]
) -> None:
    install(plugins, "broken", code)
    outcome = run(plugins, *words)
    assert outcome.returncode == 1
    assert outcome.stderr == (
        f"error: the plugin broken (broken) of broken 1.2 cannot be loaded: {reason} (broken.py, line {line})\n"
        '  correct or update that package, or remove it: "pip uninstall broken"\n'
    )
    assert "Traceback" in run(plugins, *words, "--debug").stderr
    assert run(plugins, "--version").returncode == 0


@pytest.mark.parametrize(
    ("raising", "fact"),
    [
        ("{}['Doe']", "the plugin greeting (greeting) of greeting 1.2 failed: KeyError in greeting.py, line 17"),
        # In a library that it calls.
        ("__import__('json').loads('Doe')", "the plugin greeting (greeting) of greeting 1.2 failed: JSONDecodeError"),
        # In this package, which may be wrong itself.
        ("run.stamped(1)", "this is a bug in chestx: TypeError in command.py, line "),
    ],
)
def test_an_error_in_the_code_of_a_plugin_is_no_bug_of_chestx(plugins: Path, raising: str, fact: str) -> None:
    install(plugins, "greeting", COMMAND.replace("    return", f"    {raising}\n    return"))
    outcome = run(plugins, "greet")
    assert outcome.returncode == 1
    assert outcome.stderr.startswith(f"error: {fact}"), outcome.stderr
    assert ("pip uninstall greeting" in outcome.stderr) == ("greeting" in fact)
    assert "Doe" not in outcome.stderr
    assert "Traceback" in run(plugins, "greet", "--debug").stderr


def test_from_python_a_plugin_that_cannot_be_loaded_is_an_error_of_every_command(plugins: Path) -> None:
    install(plugins, "broken", "import nothing_of_this_name")
    code = (
        "import chestx_cli\n"
        "from chestx_cli.commands.train import train\n"
        "from chestx_cli.core.errors import PluginError\n"
        "for _ in range(2):\n"
        "    try: train()\n"
        "    except PluginError as error: print(error.fact)"
    )
    outcome = run(plugins, python=code)
    assert outcome.stdout.count("the plugin broken (broken) of broken 1.2 cannot be loaded") == 2, outcome.stderr


def test_no_module_reads_a_registry_when_it_is_imported(plugins: Path) -> None:
    install(plugins, "broken", "import nothing_of_this_name")
    # A command's options come from registries; the list of commands has loaded the plugins by then.
    left_out = ("__main__", ".commands.", ".device.")
    modules = [name for name in DOTTED if not any(part in f"{name}." for part in left_out)]
    outcome = run(plugins, python=f"import importlib\nfor name in {modules!r}: importlib.import_module(name)")
    # It would load the plugins, which import what is half imported then.
    assert outcome.returncode == 0, outcome.stderr
