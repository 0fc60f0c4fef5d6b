"""Effects of configuration on commands: records, remedies and notes name it; Python, plans and cells ignore it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

import chestx_cli
from chestx_cli.core.errors import LAUNCHER
from chestx_cli.settings.sources import read_configuration
from conftest import Chestx, tree


@pytest.fixture
def at(study: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory of a finished study, without variables of this package."""
    monkeypatch.delenv("CHESTX_STUDY", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(study.parent)
    return study.parent


def test_a_record_holds_the_values_that_were_in_effect_as_flags(chestx: Chestx, at: Path) -> None:
    (at / "chestx.toml").write_text('[prune]\namount = "30%"\nname = "mine"\n')
    outcome = chestx("prune", "--json", env={"CHESTX_PRUNE_RECALIBRATE": "no"})
    record = outcome.json()
    assert record["name"] == "mine"
    assert (record["options"]["amount"], record["options"]["recalibrate"]) == (0.3, False)
    assert "--amount 0.3" in record["stamp"]["command"]
    assert "--no-recalibrate" in record["stamp"]["command"]
    # What does not affect the result needs no line.
    assert {line for line in outcome.err.splitlines() if " sets " in line} == {
        "CHESTX_PRUNE_RECALIBRATE sets --no-recalibrate",
        "chestx.toml sets --amount 0.3",
    }
    typed = shlex.split(record["stamp"]["command"])[1:]
    again = chestx(*typed, "--config", "none", "--name", "mine", "--json")
    assert again.json()["model_sha256"] == record["model_sha256"]
    assert "sets" not in again.err


def test_a_remedy_contains_every_configured_option(
    chestx: Chestx, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text("[split]\nratios = [60, 20, 20]\nimage-size = 32\n")
    words = ("split", data, "--config", "mine.toml", "--json")
    assert chestx(*words).code == 0
    # The default, typed: without it, the command would mean what the file says.
    refused = chestx(*words, "--ratios", "70/15/15").json()["error"]
    (line,) = re.findall(r'"(chestx split [^"]+)"', refused["remedy"])
    assert line.endswith("--ratios 70/15/15 --image-size 32 --config mine.toml --force")
    assert chestx(*shlex.split(line)[1:], "--json").json()["stamp"]["options"]["ratios"] == [70, 15, 15]


def test_a_switch_of_the_file_is_switched_off_by_its_flag(chestx: Chestx, at: Path) -> None:
    (at / "chestx.toml").write_text("[prune]\nforce = true\n")
    assert chestx("prune", "--amount", "0.3", "--name", "x").code == 0
    assert chestx("prune", "--amount", "0.4", "--name", "x").code == 0
    assert chestx("prune", "--amount", "0.3", "--name", "x", "--no-force").code == 1


def test_an_error_about_an_option_says_where_it_is_set(chestx: Chestx, at: Path) -> None:
    (at / "chestx.toml").write_text('[all]\nstudy = "nowhere"\n\n[study]\njobs = 100000\n')
    shown = chestx("evaluate").err
    assert shown.startswith("error: no split in nowhere/\n")
    assert shown.endswith("; --study nowhere is set by chestx.toml, line 2\n")
    write = chestx("study", "data", env={"CHESTX_STUDY_WEIGHTS": "none"})
    assert write.code == 2
    (at / "data").mkdir()
    shown = chestx("study", "data", env={"CHESTX_STUDY_WEIGHTS": "none"}).err
    assert "error: --jobs 100000 is more than the " in shown
    assert shown.endswith("; --jobs 100000 is set by chestx.toml, line 5\n")
    # Not where it is typed.
    assert "set by" not in chestx("study", "data", "--weights", "none", "--jobs", "100001").err.partition("error")[2]


@pytest.mark.parametrize(
    ("text", "env", "is_named"),
    [
        ('[all]\nstudy = "other"\n', {}, False),
        ("", {"CHESTX_STUDY": "other"}, False),
        ('[evaluate]\nstudy = "other"\n', {}, True),
        ("", {"CHESTX_EVALUATE_STUDY": "other"}, True),
    ],
)
def test_the_next_command_names_the_study_unless_it_is_set_for_all(
    chestx: Chestx, at: Path, text: str, env: dict[str, str], is_named: bool
) -> None:
    (at / "study").rename(at / "other")
    (at / "chestx.toml").write_text(text)
    shown = chestx("evaluate", env=env)
    assert shown.code == 0, shown.err
    (following,) = re.findall(r"^Next: (.*)$", shown.out, re.M)
    assert ("--study other" in following) == is_named


def test_functions_in_python_read_no_file_and_no_variable(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (at / "chestx.toml").write_text('[all]\nseed = 5\nstudy = "nowhere"\n[prune]\namount = 0.3\n')
    monkeypatch.setenv("CHESTX_PRUNE_NAME", "other")
    made = chestx_cli.prune(method="oneshot")
    assert (made.name, made.options["amount"]) == ("oneshot-50", 0.5)
    assert chestx_cli.status().rows


def test_processes_of_a_training_are_not_configured(at: Path) -> None:
    (at / "chestx.toml").write_text("[train]\nlr = 1\n")
    variables = {"CHESTX_TRAIN_EPOCHS": "3"}
    configured = read_configuration(None, variables)
    assert (configured.document, configured.variables) == ({"train": {"lr": 1}}, variables)
    started = read_configuration("no.toml", {**variables, LAUNCHER: "1"})
    assert (started.document, started.variables) == ({}, {})


def test_a_plan_and_its_cells_are_changed_by_no_configuration(
    chestx: Chestx, own_planned: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, study = own_planned
    monkeypatch.chdir(path.parent)
    before = tree(study)
    again = chestx("study", path.name, "--json")
    assert again.code == 0, again.err
    (path.parent / "chestx.toml").write_text(
        "[all]\nseed = 5\n[study]\nfolds = 4\nepochs = 9\nseeds = 2\n[train]\nlr = 0.5\nepochs = 9\n"
        "[prune]\namount = 0.9\n[evaluate]\noperating-point = 'youden'\n[split]\nratios = '50/25/25'\n"
    )
    for words in (("study", path.name), ("study",)):
        configured = chestx(*words, "--json", env={"CHESTX_STUDY_MARGIN": "0.4", "CHESTX_TRAIN_BATCH_SIZE": "7"})
        assert configured.code == 0, configured.err
        assert "sets --" not in configured.err
        assert configured.json()["rows"] == again.json()["rows"]
    names = [name for name in before if name.endswith(("plan.json", "variant.json", "split.csv"))]
    after = tree(study)
    assert {name: after[name] for name in names} == {name: before[name] for name in names}
    # A cell that has to be made again is made in a process of its own, by the plan.
    cell = next(path.parent for path in sorted(study.glob("seed-*/fold-*/variants/baseline")))
    stored = json.loads((cell / "baseline" / "variant.json").read_text())["options"]
    shutil.rmtree(cell / "baseline")
    made = chestx("study", "--json", env={"CHESTX_TRAIN_BATCH_SIZE": "7"})
    assert made.code == 0, made.err
    assert json.loads((cell / "baseline" / "variant.json").read_text())["options"] == stored


def test_a_new_plan_from_a_folder_is_configured_until_it_is_stored(
    chestx: Chestx, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chestx.toml").write_text('[study]\nfolds = 3\nseeds = 2\nvariants = "oneshot-50"\n')
    shown = chestx("study", data, "--weights", "none", "--dry-run", "--json")
    assert len(shown.json()["rows"]) == 6
    assert "chestx.toml sets --folds 3, --seeds 42,43, --variants oneshot-50\n" in shown.err
    assert "--folds 3" in shown.json()["answer"]["next_command"]
    assert len(chestx("study", data, "--dry-run", "--folds", 2, "--json").json()["rows"]) == 4


@pytest.mark.parametrize(
    ("table", "words", "refused"),
    [
        ("[prune]\nema = 0.9\nlabel-smoothing = 0.1\n", ("prune", "--name", "x"), "--ema"),
        ("[prune]\ndistill = true\ntemperature = 2.0\n", ("prune", "--name", "x"), "--distill"),
        ("[prune]\nteacher-weight = 0.3\n", ("prune", "--finetune-epochs", "1", "--name", "x"), "--teacher-weight"),
        ("[prune]\nfeature-weight = 9.0\n", ("prune", "--finetune-epochs", "1", "--name", "x"), "--feature-weight"),
        ("[prune]\nround-to = 2\nfloor = 0.2\n", ("prune", "--method", "guided", "--budget", "sparsity"), "--round-to"),
        ("[sensitivity]\ncriterion = 'l2'\n", ("sensitivity", "--amounts", "0.5"), "--criterion"),
        ("[sensitivity]\nlayers = 'conv1'\n", ("sensitivity", "--structured", "--amounts", "0.5"), "--layers"),
        ("[evaluate]\nname = 'other'\nallow-leakage = true\n", ("evaluate",), "--name"),
        ("[predict]\nforce = true\n", ("predict", "film.png"), "--force"),
        (
            "[benchmark]\nhost-python = 'p'\n",
            ("benchmark", "--rounds", "1", "--duration", "0.01"),
            "--host-python",
        ),
    ],
)
def test_a_configured_value_without_effect_is_left_out_and_a_typed_one_is_refused(
    chestx: Chestx, at: Path, data: Path, table: str, words: tuple[str, ...], refused: str
) -> None:
    shutil.copy(next(data.rglob("*.png")), at / "film.png")
    (at / "chestx.toml").write_text(table)
    outcome = chestx(*words)
    assert outcome.code == 0, outcome.err
    assert " sets " not in outcome.err
    shown = chestx("config", words[0], "--json").json()
    # By the command without flags.
    assert {row["is_used"] for row in shown["rows"] if row["source"] == "file"} == {"--structured" in words}
    key, _, value = table.splitlines()[1].partition(" = ")
    typed = (refused,) if value == "true" else (refused, value.strip("'"))
    assert refused == f"--{key}"
    outcome = chestx(*words, *typed, "--config", "none")
    assert outcome.code == 2
    assert refused in outcome.err


def test_a_configured_warm_up_is_left_out_where_the_schedule_has_its_own(
    chestx: Chestx, at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (at / "chestx.toml").write_text("[train]\nwarmup-epochs = 0.5\n")
    fit: list[dict[str, Any]] = []

    def remember(_: object, **options: Any) -> None:
        fit.append(options)

    monkeypatch.setattr(chestx_cli.train, "function", remember)
    for schedule in ("cosine", "onecycle"):
        chestx("train", "--schedule", schedule)
    assert [options["refinements"].warmup_epochs for options in fit] == [0.5, 0.0]


def test_config_shows_every_value_and_where_it_is_set(chestx: Chestx, at: Path) -> None:
    nothing = chestx("config", "--json").json()
    assert nothing["answer"]["sentence"] == (
        "Options of all commands: no chestx.toml here, no variable sets any; all have their defaults."
    )
    assert {row["source"] for row in nothing["rows"]} == {"default"}
    assert {row["command"] for row in nothing["rows"]} >= {"split", "train", "report"}
    (at / "chestx.toml").write_text('[all]\nseed = 5\n\n[prune]\namount = "30%"\nlr = 0.1\ndistill = true\n')
    env = {"CHESTX_PRUNE_LR": "0.2", "CHESTX_QUANTIZE_CALIBRATION_IMAGES": "64"}
    document = chestx("config", "prune", "--json", env=env).json()
    rows = {row["option"]: (row["value"], row["source"], row["place"]) for row in document["rows"]}
    assert rows["--seed"] == ("5", "file", "chestx.toml, line 2")
    assert rows["--amount"] == ("0.3", "file", "chestx.toml, line 5")
    assert rows["--lr"] == ("0.2", "variable", "CHESTX_PRUNE_LR")
    assert rows["--distill"] == ("on", "file", "chestx.toml, line 7")
    assert rows["--method"] == ("oneshot", "default", None)
    assert rows["--name"] == (None, "default", None)
    assert (document["file"], document["variables"]) == ("chestx.toml", ["CHESTX_PRUNE_LR"])
    shown = chestx("config", env=env)
    # What is set for all commands stands there once, and nothing is wider than a terminal.
    assert shown.out.count("--seed") == 1
    assert re.search(r"^all --seed +5 +chestx.toml, line 2 *$", shown.out, re.M)
    # Without fine-tuning there is no learning rate, but its default is no error.
    assert re.search(r"^prune --lr +0.2 +CHESTX_PRUNE_LR *$", shown.out, re.M)
    assert re.search(r"^prune --distill +on \(unused\) +chestx.toml, line 7 *$", shown.out, re.M)
    table = shown.out.partition("Options of")[0].splitlines()
    assert max(map(len, table)) <= 80
    assert "3 set by chestx.toml, 2 set by variables" in shown.out
    assert chestx("config", "nosuch").code == 2


def test_config_in_python_shows_the_shells_configuration(at: Path) -> None:
    (at / "mine.toml").write_text("[train]\nepochs = 3\n")
    record = chestx_cli.config("train", config="mine.toml")
    assert [(row.option, row.place) for row in record.configured] == [("--epochs", "mine.toml, line 2")]
    assert repr(record).startswith("<ConfigRecord: 1 options set by mine.toml, 0 by variables")
