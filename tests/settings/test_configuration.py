"""Options from chestx.toml and CHESTX_*: precedence, reported places, and what they must not change."""

from __future__ import annotations

import contextlib
import json
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import chestx_cli
from chestx_cli.command_table import SUMMARIES
from chestx_cli.core.command import Stage
from chestx_cli.core.errors import LAUNCHER, ChestxError, UsageError
from chestx_cli.core.options import Declared
from chestx_cli.settings import precedence
from chestx_cli.settings.sources import PREFIX, SHARED, configurable, variable_of
from chestx_cli.settings.values import read_text, value_of
from conftest import Chestx, Outcome

# What is tried as the value of an option, after its own choices.
TEXTS = ("3", "7", "64", "96", "128", "0.1", "0.3", "0.45", "2,5", "1,7", "4,9", "60/20/20", "80/10/10", "x", "y", "z")
METHODS = {command: getattr(chestx_cli, command).methods for command in SUMMARIES}
# Each command, with each of its methods: the options of one call.
CALLS = [
    pytest.param(command, method, id=f"{command} {method or ''}")
    for command in SUMMARIES
    for method in (METHODS[command][1].registry if METHODS[command] else (None,))
]
Captured = list[dict[str, Any]]


def stage_of(command: str) -> Stage[..., Any]:
    found: Stage[..., Any] = getattr(chestx_cli, command)
    return found


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty working directory, without variables of this package."""
    for name in ("STUDY", "CONFIG"):
        monkeypatch.delenv(f"{PREFIX}{name}", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Captured:
    """Return a list of the options with which commands are run; they end before they begin."""
    calls: Captured = []

    def run_from(*_: object, **values: Any) -> None:
        calls.append(values)
        raise ChestxError("captured")

    monkeypatch.setattr(Stage, "run_from", run_from)
    return calls


def words_for(command: str) -> list[str]:
    """Return the command with its required arguments."""
    options = stage_of(command).options.values()
    return [command, *("x" for one in options if one.opt.argument and one.parameter.default is one.parameter.empty)]


def is_switch(one: Declared) -> bool:
    return bool in (one.kind, *typing.get_args(one.kind))


def in_toml(one: Declared, text: str) -> str:
    """Return a flag's text as a file has it: numbers and switches as such, the rest in quotation marks."""
    is_number = {int, float} & {one.kind, *typing.get_args(one.kind)} and re.fullmatch(r"[\d.]+", text)
    return text if is_switch(one) or is_number else json.dumps(text)


def typed_flag(name: str, one: Declared, text: str) -> list[str]:
    if is_switch(one):
        return [one.opt.flag_of(name) if text == "true" else one.opt.flag_off(name)]
    return [one.opt.flag_of(name), text]


def texts_of(name: str, one: Declared, default: object) -> tuple[str, str, str]:
    """Return three texts that an option takes, each unlike the one before it and the first unlike the default."""
    if is_switch(one):
        first, second = ("false", "true") if default else ("true", "false")
        return first, second, first
    found: dict[object, str] = {}
    for text in (*(one.opt.choices or ()), *TEXTS):
        with contextlib.suppress(UsageError, ValueError):
            found.setdefault(value_of(name, read_text(text, one), one, Path()), text)
    texts = [text for value, text in found.items() if value != default]
    # Of an option with two choices, one is the default.
    texts = texts if len(texts) > 1 else [*texts, *(text for text in found.values() if text not in texts)][:2]
    first, second, third = (*texts, *texts)[:3]
    return first, second, third


@pytest.mark.parametrize(("command", "method"), CALLS)
def test_a_flag_counts_more_than_a_variable_more_than_the_file_more_than_the_default(
    chestx: Chestx,
    at: Path,
    captured: Captured,
    command: str,
    method: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # All options at once exclude each other: what is left out then, another test shows.
    monkeypatch.setattr(precedence, "_without_effect", lambda *_: "")
    stage = stage_of(command)
    options = {
        name: one
        for name, one in configurable(stage.options).items()
        if name != "method" and (method is None or one.opt.defaults is None or method in one.opt.defaults)
    }
    words = [*words_for(command), *(("--method", method) if method else ())]
    variables = {name: variable_of(command, name, one) for name, one in options.items()}

    def values(*, flags: Mapping[str, str], env: Mapping[str, str], file: Mapping[str, str]) -> dict[str, Any]:
        lines = [f"{options[name].opt.flag_of(name)[2:]} = {in_toml(options[name], file[name])}" for name in file]
        (at / "chestx.toml").write_text("\n".join([f"[{command}]", *lines]))
        typed = [word for name in flags for word in typed_flag(name, options[name], flags[name])]
        outcome = chestx(*words, *typed, env={variables[name]: text for name, text in env.items()})
        assert outcome.code == 1, outcome.err
        found = captured.pop()
        return {name: found[name] for name in options}

    def in_effect(name: str, given: object) -> object:
        # None is the default of the method.
        by_method = options[name].opt.defaults
        return by_method[method] if given is None and method and by_method else given

    default = values(flags={}, env={}, file={})
    texts = {name: texts_of(name, one, in_effect(name, default[name])) for name, one in options.items()}
    first, second, third = ({name: text[at] for name, text in texts.items()} for at in range(3))
    # What the flags mean is what the same text means elsewhere.
    v1, v2, v3 = (values(flags=given, env={}, file={}) for given in (first, second, third))
    assert all(v1[name] != in_effect(name, default[name]) and v1[name] != v2[name] != v3[name] for name in options)
    assert values(flags={}, env={}, file=first) == v1
    assert values(flags={}, env=second, file={}) == v2
    assert values(flags={}, env=dict.fromkeys(second, ""), file={}) == default, "an empty variable sets nothing"
    names = list(options)
    for half in (names[::2], names[1::2]):
        some = {name: second[name] for name in half}
        assert values(flags={}, env=some, file=first) == {**v1, **{name: v2[name] for name in half}}
        some = {name: third[name] for name in half}
        assert values(flags=some, env=second, file=first) == {**v2, **{name: v3[name] for name in half}}


def test_a_variable_is_named_by_its_command_and_flag() -> None:
    options = stage_of("prune").options
    assert variable_of("prune", "batch_size", options["batch_size"]) == "CHESTX_PRUNE_BATCH_SIZE"
    assert variable_of("prune", "parent", options["parent"]) == "CHESTX_PRUNE_FROM"
    assert variable_of(None, "study", options["study"]) == "CHESTX_STUDY"


@pytest.mark.parametrize("key", SHARED)
def test_what_is_set_for_all_commands_counts_less_than_what_is_set_for_one(
    chestx: Chestx, at: Path, captured: Captured, key: str
) -> None:
    texts = {"study": ("a", "b", "c", "d"), "device": ("cuda", "auto", "cpu", "cuda"), "seed": ("1", "2", "3", "4")}
    one = stage_of("train").options[key]

    def value(**env: str) -> str:
        chestx("train", env=env)
        return str(captured.pop()[key])

    first, second, third, fourth = texts[key]
    (at / "chestx.toml").write_text(f"[all]\n{key} = {in_toml(one, first)}\n")
    assert value() == first
    (at / "chestx.toml").write_text(f"[all]\n{key} = {in_toml(one, first)}\n[train]\n{key} = {in_toml(one, second)}\n")
    assert value() == second
    assert value(**{f"CHESTX_{key.upper()}": third}) == third
    assert value(**{f"CHESTX_{key.upper()}": third, f"CHESTX_TRAIN_{key.upper()}": fourth}) == fourth
    # A command without the option takes the file all the same.
    assert chestx("config", "export").code == 1


def test_no_two_options_have_one_variable() -> None:
    options = {command: configurable(stage_of(command).options) for command in SUMMARIES}
    names = [variable_of(command, name, one) for command in options for name, one in options[command].items()]
    shared = [f"{PREFIX}{key.upper()}" for key in SHARED]
    assert len({*names, *shared, f"{PREFIX}CONFIG", LAUNCHER}) == len(names) + len(shared) + 2


@pytest.mark.parametrize("command", SUMMARIES)
def test_every_command_takes_another_file_whose_paths_begin_where_it_lies(
    chestx: Chestx, at: Path, captured: Captured, command: str
) -> None:
    (at / "elsewhere").mkdir()
    file = at / "elsewhere" / "mine.toml"
    file.write_text('[all]\nstudy = "runs"\nseed = 5\n')
    (at / "chestx.toml").write_text("[all]\nseed = 6\n")
    options = stage_of(command).options
    for words, env in (
        ((*words_for(command), "--config", file), {}),
        (words_for(command), {"CHESTX_CONFIG": str(file)}),
    ):
        assert chestx(*words, env=env).code == 1
        values = captured.pop()
        assert values.get("seed", 5) == 5
        assert "study" not in options or Path(values["study"]) == at / "elsewhere" / "runs"
    assert chestx(*words_for(command), "--config", "none", env={"CHESTX_CONFIG": str(file)}).code == 1
    values = captured.pop()
    assert all(values[key] == options[key].parameter.default for key in ("seed", "study") if key in options)


# What a file says, what the error says of it, and what its remedy begins with.
REFUSED: Mapping[str, tuple[str, str, str]] = {
    "an unknown key": (
        "[prune]\namount = 0.3\nfinetune-epoch = 2\n",
        "chestx.toml, line 3: unknown key 'finetune-epoch' in [prune]",
        "allowed are finetune-epochs, ",
    ),
    "a flag with its dashes": (
        '[prune]\n"--amount" = 0.3\n',
        "unknown key '--amount' in [prune]",
        "allowed are amount, ",
    ),
    "an argument": ('[prune]\nvariants = ["a"]\n', "chestx.toml, line 2: unknown key 'variants' in [prune]", "allowed"),
    "a key that is not shared": (
        "[all]\namount = 0.3\n",
        "chestx.toml, line 2: unknown key 'amount' in [all]",
        "allowed",
    ),
    "an unknown table": ("[trian]\nepochs = 3\n", "chestx.toml, line 1: unknown table [trian]", "allowed are train, "),
    "no table": (
        "\nseed = 3\n",
        "chestx.toml, line 2: seed stands in no table",
        "write it below [all] or below a command",
    ),
    "a value out of range": (
        "[all]\nseed = 1\n\n[prune]\n# of the weights\namount = 1.5\n",
        "chestx.toml, line 6: --amount 1.5 is too large in [prune]",
        "it must be at most 0.99; write 1.5% for 0.015",
    ),
    "a value of another type": (
        '[prune]\nbatch-size = "many"\n',
        "chestx.toml, line 2: 'many' cannot be the value of batch-size",
        '"chestx prune --help" lists its options',
    ),
    "no such choice": (
        '[prune]\nmethod = "twoshot"\n',
        "chestx.toml, line 2: unknown --method 'twoshot' in [prune]",
        "choose one of oneshot",
    ),
    "no TOML": ("[prune\n", "chestx.toml is no TOML: ", "write [train] and below it lines such as epochs = 6"),
    "another program's": (
        "[server]\nport = 80\n",
        "chestx.toml, line 1: unknown table [server]",
        "allowed are ",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_fault_in_the_file_names_its_line_and_what_is_allowed(chestx: Chestx, at: Path, what: str) -> None:
    text, fact, remedy = REFUSED[what]
    (at / "chestx.toml").write_text(text)
    for words in (["prune"], ["config", "prune"], ["config"]):
        error = chestx(*words, "--json").json()["error"]
        assert error["exit_code"] == 2
        assert fact in error["fact"]
        assert error["remedy"].startswith(remedy)
    if "table" in what or "program" in what:
        assert "--config none leaves it unread" in error["remedy"]
    assert not chestx("prune", "--config", "none").err.startswith(f"error: {fact[:12]}")


@pytest.mark.usefixtures("at")
@pytest.mark.parametrize(
    ("variable", "text", "fact", "remedy"),
    [
        ("CHESTX_PRUNE_AMOUNT", "2", "CHESTX_PRUNE_AMOUNT: --amount 2.0 is too large", "it must be at most 0.99"),
        ("CHESTX_PRUNE_STEPS", "x", "CHESTX_PRUNE_STEPS: 'x' is not a whole number", '"chestx prune --help" lists'),
        ("CHESTX_PRUNE_LR", "x", "CHESTX_PRUNE_LR: 'x' is not a number", '"chestx prune --help" lists'),
        ("CHESTX_PRUNE_DISTILL", "maybe", "CHESTX_PRUNE_DISTILL: 'maybe' is neither true nor false", '"chestx prune'),
        ("CHESTX_DEVICE", "gpu", "CHESTX_DEVICE: unknown --device 'gpu'", "choose one of auto, cpu, cuda"),
        ("CHESTX_PRUNE_AMONT", "0.3", "CHESTX_PRUNE_AMONT sets no option", "the nearest is CHESTX_PRUNE_AMOUNT"),
        ("CHESTX_PRUNE_ZZZ", "0.3", "CHESTX_PRUNE_ZZZ sets no option of chestx prune", '"chestx prune --help" lists'),
    ],
)
def test_a_fault_in_a_variable_names_it(chestx: Chestx, variable: str, text: str, fact: str, remedy: str) -> None:
    for words in (["prune"], ["config", "prune"], ["config"]):
        error = chestx(*words, "--json", env={variable: text}).json()["error"]
        assert error["exit_code"] == 2
        assert error["fact"].startswith(fact)
        assert error["remedy"].startswith(remedy)
    assert "PRUNE" not in variable or variable not in chestx("status", env={variable: text}).err, "of another command"


@pytest.mark.usefixtures("at")
@pytest.mark.parametrize(
    ("variable", "warning"),
    [
        ("CHESTX_DEVCE", "warning: CHESTX_DEVCE sets no option; the nearest is CHESTX_DEVICE\n"),
        ("CHESTX_TRIAN_LR", "warning: CHESTX_TRIAN_LR sets no option; the nearest is CHESTX_TRAIN_LR\n"),
        ("CHESTX_Q", "warning: CHESTX_Q sets no option\n"),
    ],
)
def test_a_variable_of_no_command_is_warned_of(chestx: Chestx, variable: str, warning: str) -> None:
    env = {variable: "1"}
    assert chestx("status", env=env).err.startswith(warning)
    assert chestx("config", "--json", env=env).json()["answer"]["warnings"] == [warning[len("warning: ") : -1]]


def test_a_file_that_cannot_be_read_is_named(chestx: Chestx, at: Path) -> None:
    (at / "folder").mkdir()
    (at / "latin.toml").write_bytes("[train]\nname = 'ä'\n".encode("latin-1"))
    (at / "marked.toml").write_bytes(b"\xef\xbb\xbf[all]\nseed = 3\n")

    def refused(file: str, **env: str) -> Outcome:
        return chestx("status", *(("--config", file) if file else ()), env=env)

    missing = refused("no.toml")
    assert (missing.code, missing.err.startswith("error: no configuration file no.toml\n")) == (2, True)
    missing = refused("", CHESTX_CONFIG="no.toml")
    assert (missing.code, missing.err.startswith("error: no configuration file no.toml (CHESTX_CONFIG)\n")) == (2, True)
    assert (refused("latin.toml").code, "latin.toml is no text in UTF-8" in refused("latin.toml").err) == (2, True)
    folder = refused("folder")
    assert (folder.code, "folder" in folder.err, "bug" in folder.err) == (1, True, False)
    # The mark that some editors put before a text.
    assert chestx("config", "--config", "marked.toml").code == 0
    # A folder of that name is no configuration.
    (at / "chestx.toml").mkdir()
    assert chestx("config").code == 0


def test_an_option_of_another_method_is_not_used(chestx: Chestx, at: Path, captured: Captured) -> None:
    (at / "chestx.toml").write_text('[prune]\nsteps = 4\namount = 0.3\n[quantize]\nmethod = "static"\nepochs = 2\n')
    chestx("prune", "--method", "iterative")
    values = captured.pop()
    assert (values["steps"], values["amount"]) == (4, 0.3)
    chestx("prune", "--method", "oneshot")
    values = captured.pop()
    assert (values["steps"], values["amount"]) == (None, 0.3)
    chestx("quantize")
    values = captured.pop()
    assert (values["method"], values["epochs"]) == ("static", None)
