"""Help texts: a study in five lines, and every option on a line of 80 columns, with its choices and default whole."""

from __future__ import annotations

import re

import pytest

import chestx_cli
from chestx_cli.cli.help import STEPS, WIDTH
from chestx_cli.command_table import SUMMARIES
from conftest import Chestx


def test_chestx_alone_is_the_path_of_a_study(chestx: Chestx) -> None:
    shown = chestx("--help").out.splitlines()
    assert max(map(len, shown)) <= WIDTH
    assert len(shown) <= 30
    assert [line.strip().partition("  ")[0] for line in shown if line.startswith("  chestx ")] == [s for s, _ in STEPS]
    for name, summary in SUMMARIES.items():
        assert f"  {name}".ljust(16) + summary in shown


@pytest.mark.parametrize("command", SUMMARIES)
def test_every_option_is_on_one_line_with_its_choices_and_default(chestx: Chestx, command: str) -> None:
    outcome = chestx(command, "--help")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert [line for line in lines if len(line) > WIDTH] == []
    stage = getattr(chestx_cli, command)
    for name, (parameter, _, opt) in stage.options.items():
        flag = (opt.metavar or name.upper()) if opt.argument else opt.flag_of(name)
        at = [i for i, line in enumerate(lines) if re.match(rf"  {re.escape(flag)}[ /]", line)]
        assert len(at) == 1, (flag, at)
        # Its line, and those below it that begin further right.
        block = [lines[at[0]]]
        for line in lines[at[0] + 1 :]:
            if not line.startswith("    "):
                break
            block.append(line)
        words = " ".join(" ".join(block).split())
        for choice in opt.choices or ():
            assert re.search(rf"(^| ){re.escape(choice)}(,| |$)", words), (flag, choice)
        if isinstance(parameter.default, (int, float)) and not isinstance(parameter.default, bool):
            assert f"[{opt.show(parameter.default)}]" in words, (flag, words)
