"""Help texts: a study in five lines, and every option within 80 columns, with all choices and its default."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest

import chestx_cli
from chestx_cli.cli.help import STEPS, WIDTH, help_of
from chestx_cli.command_table import SUMMARIES
from chestx_cli.compression.pruning.methods import PRUNING_METHODS
from chestx_cli.compression.quantization.methods import QUANTIZATION_METHODS
from chestx_cli.core.command import Run, stage
from chestx_cli.core.options import Methods, Opt, declared_fields
from chestx_cli.core.record import Record
from conftest import Chestx

METHODS: dict[str, dict[str, type[Any]]] = {"prune": dict(PRUNING_METHODS), "quantize": dict(QUANTIZATION_METHODS)}
OF_METHODS = [(command, method) for command, methods in METHODS.items() for method in methods]


def block_of(shown: str, flag: str) -> list[str]:
    """Return the lines of an option: that of its flag, and those below it that begin further right."""
    lines = shown.splitlines()
    at = [i for i, line in enumerate(lines) if re.match(rf"  {re.escape(flag)}[ /]", line)]
    assert len(at) == 1, (flag, at)
    block = [lines[at[0]]]
    for line in lines[at[0] + 1 :]:
        if not line.startswith("    "):
            break
        block.append(line)
    return block


def defaults_of(block: list[str]) -> dict[str, list[str]]:
    """Return the defaults of an option with their methods; no methods if the default is for all."""
    words = " ".join(" ".join(block).split())
    bracketed = re.search(r" \[([^]]+)\]", words)
    if bracketed is None:
        return {}
    if "; " not in bracketed[1] and " " not in bracketed[1]:
        return {bracketed[1]: []}
    by_text = dict(part.split(" ", 1) for part in bracketed[1].split("; "))
    return {text: methods.split(", ") for text, methods in by_text.items()}


def text_of(opt: Opt, value: object) -> str:
    """Return a default as help shows it, nothing where there is none or it is off."""
    if value is None or value is False or value == ():
        return ""
    return "on" if value is True else opt.show(value)


def test_chestx_alone_is_the_path_of_a_study(chestx: Chestx) -> None:
    shown = chestx("--help").out.splitlines()
    assert max(map(len, shown)) <= WIDTH
    # The path takes ten lines; each command has one.
    assert len(shown) <= 13 + len(SUMMARIES)
    assert [line.strip().partition("  ")[0] for line in shown if line.startswith("  chestx ")] == [s for s, _ in STEPS]
    for name, summary in SUMMARIES.items():
        assert f"  {name}".ljust(16) + summary in shown


@pytest.mark.parametrize("command", SUMMARIES)
def test_every_option_is_there_with_its_text_its_choices_and_its_default(chestx: Chestx, command: str) -> None:
    outcome = chestx(command, "--help")
    assert outcome.code == 0, outcome.err
    assert [line for line in outcome.out.splitlines() if len(line) > WIDTH] == []
    stage = getattr(chestx_cli, command)
    for name, (parameter, _, opt) in stage.options.items():
        block = block_of(outcome.out, (opt.metavar or name.upper()) if opt.argument else opt.flag_of(name))
        assert opt.help.removesuffix(".") in " ".join(" ".join(block).split())
        for choice in opt.choices or ():
            assert [line for line in block if re.search(rf"(^| ){re.escape(choice)}(,| |$)", line)], (name, choice)
        if not opt.defaults and parameter.default is not parameter.empty:
            expected = text_of(opt, parameter.default)
            assert defaults_of(block) == ({expected: []} if expected else {}), (name, block)


@pytest.mark.parametrize(("command", "method"), OF_METHODS)
def test_every_option_of_a_method_is_there_with_the_default_of_the_method(
    chestx: Chestx, command: str, method: str
) -> None:
    shown = chestx(command, "--help").out
    for name, (parameter, _, opt) in declared_fields(METHODS[command][method]).items():
        block = block_of(shown, opt.flag_of(name))
        assert opt.help.removesuffix(".") in " ".join(" ".join(block).split())
        for choice in opt.choices or ():
            assert [line for line in block if re.search(rf"(^| ){re.escape(choice)}(,| |$)", line)], (name, choice)
        by_text = defaults_of(block)
        expected = text_of(opt, parameter.default)
        if expected:
            assert by_text[expected] == [] or method in by_text[expected], (name, block)
        else:
            assert not [text for text, methods in by_text.items() if method in methods or not methods], (name, block)


@dataclass(frozen=True, kw_only=True)
class Plain:
    """A method whose first line is too long to fit beside its name, so that it continues below."""

    amount: Annotated[float, Opt(help="Share of the whole.")] = 0.5


@dataclass(frozen=True, kw_only=True)
class Other:
    """Another."""

    amount: Annotated[float, Opt(help="Share (of what is left).")] = 0.25
    place: Annotated[str, Opt(help="Where to begin (its name).")] = "a-very-long-name-of-a-place"


@stage()
def long_texts(
    run: Run,
    *,
    method: Annotated[
        Plain | Other, Methods(registry={"plain-one": Plain, "other-one": Other}, default="plain-one", help="Which.")
    ],
    folder: Annotated[Path, Opt(help="A text that is as long as one of somebody else may be." + 2 * " And on.")] = Path(
        "a/b-c/d"
    ),
    count: Annotated[int, Opt(help="How many.")] = 0,
    criterion: Annotated[str, Opt(help="One.", choices=[f"{'x' * n}-one" for n in range(1, 30)])] = "x-one",
) -> Record:
    """Do something."""
    raise NotImplementedError(run, method, folder, count, criterion)


def test_long_texts_go_on_below_and_names_stay_whole() -> None:
    shown = help_of(long_texts, "chestx long-texts")
    assert max(map(len, shown.splitlines())) <= WIDTH
    folder = block_of(shown, "--folder")
    assert folder[-1].strip() == "[a/b-c/d]"
    assert " ".join(" ".join(folder).split()).count("else may be. And on. And on.") == 1
    assert all(line.startswith(" " * 27) for line in folder[1:])
    assert block_of(shown, "--count")[0].endswith("[0]")
    criterion = block_of(shown, "--criterion")
    listed = ", ".join(line.strip().removesuffix(",") for line in criterion[1:])
    assert listed.split(", ") == [f"{'x' * n}-one" for n in range(1, 30)]
    method = " ".join(" ".join(block_of(shown, "--method")).split())
    assert "plain-one " + " ".join((Plain.__doc__ or "").split()) in method


def test_methods_stand_behind_a_text_unless_the_title_names_them() -> None:
    shown = " ".join(help_of(long_texts, "chestx long-texts").split())
    assert "Share of the whole (plain-one). Share (of what is left) (other-one)." in shown
    assert "[0.5 plain-one; 0.25 other-one]" in shown
    assert "Method other-one: --place TEXT Where to begin (its name). [a-very-long-name-of-a-place]" in shown
    documented = " ".join((long_texts.__doc__ or "").split())
    assert "Share of the whole (plain-one). Share (of what is left) (other-one)." in documented
    assert "Where to begin (its name) (other-one)." in documented
