"""Invalid command lines: exit code 2, a fact and a remedy to type; the same as JSON with --json."""

from __future__ import annotations

import re
import shlex
import typing
from pathlib import Path

import pytest

import chestx_cli
from chestx_cli.cli.main import main
from chestx_cli.command_table import SUMMARIES
from chestx_cli.core.options import Declared
from conftest import Chestx


def takes_value(declared: Declared) -> bool:
    return not declared.opt.argument and bool not in (declared.kind, *typing.get_args(declared.kind))


def is_narrow(declared: Declared) -> bool:
    """Return whether an option takes one of several names, or a whole number."""
    kinds = (declared.kind, *typing.get_args(declared.kind))
    return takes_value(declared) and (declared.opt.choices is not None or int in kinds)


def refused_lines() -> list[list[str]]:
    """Return for every command an unknown option, a missing value, bad choices, too few and too many words."""
    lines = [["nosuchcommand"], ["--nosuchoption"]]
    for command in SUMMARIES:
        options = getattr(chestx_cli, command).options
        flag = next(declared.opt.flag_of(name) for name, declared in options.items() if takes_value(declared))
        lines += [[command, "--nosuchoption"], [command, flag]]
        required = sum(one.opt.argument and one.parameter.default is one.parameter.empty for one in options.values())
        words = ["x"] * required
        if required:
            lines.append([command])
        if not any(one.opt.argument and typing.get_origin(one.kind) is tuple for one in options.values()):
            arguments = sum(one.opt.argument for one in options.values())
            lines.append([command, *["x"] * (arguments + 1)])
        of_kind = {one.opt.choices is not None: (name, one) for name, one in options.items() if is_narrow(one)}
        lines += [[command, *words, one.opt.flag_of(name), "nosuch"] for name, one in of_kind.values()]
    return lines


@pytest.mark.parametrize("words", refused_lines(), ids=" ".join)
def test_a_refused_command_line_is_a_fact_and_a_remedy_and_json_where_it_was_asked_for(
    chestx: Chestx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = chestx(*words)
    assert (plain.code, plain.out) == (2, "")
    # Before the other words, as an option without a value would take it for one.
    asked = chestx(*words, "--json") if words[0].startswith("-") else chestx(words[0], "--json", *words[1:])
    error = asked.json()["error"]
    assert (asked.code, list(error), error["exit_code"]) == (2, ["fact", "remedy", "exit_code"], 2)
    assert plain.err == asked.err == f"error: {error['fact']}\n  {error['remedy']}\n"
    for command in re.findall(r'"(chestx [^"]+--help)"', error["remedy"]):
        assert chestx(*shlex.split(command)[1:]).code == 0
    assert not list(tmp_path.iterdir())


def test_a_flag_that_stands_for_a_value_is_a_wish_for_json_all_the_same(chestx: Chestx) -> None:
    assert chestx("prune", "--amount", "--json").json()["error"]["exit_code"] == 2


def test_an_error_before_any_command_is_json_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["chestx", "prune", "--json"])
    from chestx_cli.core.errors import PluginError

    def fail(_: object) -> None:
        raise PluginError("the plugin cannot be loaded", "remove it")

    monkeypatch.setattr("chestx_cli.cli.app.app_for", fail)
    monkeypatch.setattr("chestx_cli.cli.streams.prepare", lambda: None)
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr()
    assert ended.value.code == 1
    assert '"fact": "the plugin cannot be loaded"' in shown.out
    assert shown.err == "error: the plugin cannot be loaded\n  remove it\n"
