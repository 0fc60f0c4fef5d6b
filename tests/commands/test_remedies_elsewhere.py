"""Commands suggested by errors and answers work as printed, for any names of study and images."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from conftest import TINY, Chestx, edit, lose_sensitivity, run_chestx, write_images

# As they are typed, and as folders are called in reports of faults: with a space, and as if they were flags.
STUDIES = ("study", "my study", "-s", "x's")
TYPED = re.compile(r'"(chestx [^"]+)"')
SPLIT = ("split", "DATA", "--image-size", 32)
TRAIN = ("train", "DATA", *TINY, "--epochs", 1)
GUIDED = ("prune", "--method", "guided", "--budget", "macs", "--amount", 0.3, "--finetune-epochs", 0, "--floor", 0.1)
Make = Callable[[Path], object]


def stale(study: Path) -> None:
    """Let the evaluation be of another model than the one that there is."""
    path = study / "variants" / "oneshot-50" / "evaluation.test.json"
    edit(path, lambda text: re.sub(rb'"model_sha256": "\w', b'"model_sha256": "z', text))


def inferior(study: Path) -> None:
    """Let the stored evaluation say that the variant's sensitivity fell."""
    lose_sensitivity(study, "oneshot-50")


def nothing(_: Path) -> None:
    """Leave the finished study as it is."""


def without(*names: str) -> Make:
    def remove(study: Path) -> None:
        for name in names:
            path = study / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def damaged(name: str) -> Make:
    return lambda study: edit(study / name, lambda content: content + b" ")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command that fails in a study: what is done to the finished study before, and what is typed beside its remedy.

    With `again` the command that failed works when the remedy has been typed. `more` are words behind a remedy's
    command, for a network and images of this size.
    """

    words: tuple[object, ...]
    make: Make
    says: str
    again: bool = True
    more: Mapping[str, tuple[object, ...]] = field(default_factory=dict)


OF_SPLIT = {"split": ("--image-size", 32), "train": (*TINY, "--epochs", 1)}
NO_STUDY = without("split.csv", "split.json", "variants", "report", "duplicates.csv")
NO_VARIANTS = without("variants", "report")
CASES = {
    **{
        f"{command[0]} without a split": Case(words=command, make=NO_STUDY, says="no split", again=False, more=OF_SPLIT)
        for command in (
            ("train", *TINY, "--epochs", 1),
            ("sensitivity",),
            ("prune",),
            ("quantize",),
            ("evaluate",),
            ("benchmark",),
            ("report",),
            ("compress", "--max-size-mb", 1),
            ("compare", "baseline", "x"),
            ("export", "baseline", "--out", "bundle"),
        )
    },
    **{
        f"{command[0]} without a variant": Case(
            words=command, make=NO_VARIANTS, says="no variant", again=again, more=OF_SPLIT
        )
        for command, again in (
            (("sensitivity", "--amounts", 0.5), True),
            (("prune",), True),
            (("quantize",), True),
            (("evaluate",), True),
            (("benchmark", "--rounds", 1, "--duration", 0.02), True),
            (("export", "baseline", "--out", "bundle"), True),
        )
    },
    "a comparison without an evaluation": Case(
        words=("compare", "baseline", "oneshot-50"),
        make=without("variants/oneshot-50/evaluation.test.json"),
        says="has not been evaluated on test",
    ),
    "a comparison with an old evaluation": Case(
        words=("compare", "baseline", "oneshot-50"), make=stale, says="was evaluated with another model"
    ),
    "a comparison of edited predictions": Case(
        words=("compare", "baseline", "oneshot-50"),
        make=damaged("variants/oneshot-50/predictions.test.csv"),
        says="predictions.test.csv",
    ),
    "exporting what is inferior": Case(
        words=("export", "oneshot-50", "--out", "bundle"),
        make=inferior,
        says="oneshot-50 is inferior",
        again=False,
    ),
    "pruning by another criterion than was measured": Case(
        words=(*GUIDED, "--criterion", "l2"),
        make=lambda study: run_chestx("sensitivity", "--structured", "--amounts", "0.3,0.6", "--study", f"{study}"),
        says="not l2",
    ),
    "pruning by what was not measured": Case(
        words=GUIDED, make=nothing, says="the sensitivity of baseline has not been measured"
    ),
    "pruning by an old measurement": Case(
        words=("prune", "--method", "guided", "--budget", "sparsity", "--amount", 0.3, "--steps", 1),
        make=lambda study: edit(
            study / "variants" / "baseline" / "sensitivity.json",
            lambda text: re.sub(rb'"model_sha256": "\w', b'"model_sha256": "z', text),
        ),
        says="the stored sensitivity is of an earlier baseline",
    ),
    "an edited split": Case(words=("evaluate",), make=damaged("split.csv"), says="split.csv", again=True),
}


def placed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Path, name: str) -> Path:
    """Copy the finished study under a name, with the images beside it, and go there."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, tmp_path / name)
    return tmp_path / name


def filled(words: tuple[object, ...], data: Path) -> list[object]:
    return [data if word == "DATA" else word for word in words]


# One name for each error, and every name for some.
SOME = ("prune without a split", "evaluate without a variant", "a comparison without an evaluation")
PAIRS = [(case, name) for case in CASES for name in STUDIES if name == "my study" or case in SOME]


@pytest.mark.parametrize(("case", "name"), PAIRS)
def test_a_remedy_works_as_it_is_typed_in_any_study(
    chestx: Chestx, finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, name: str
) -> None:
    it = CASES[case]
    study = placed(tmp_path, monkeypatch, finished, name)
    it.make(study)
    words = (*it.words, *(() if name == "study" else ("--study", name)))
    failed = chestx(*words, env={"COLUMNS": "400"})
    assert failed.code == 1, failed.err
    assert it.says in failed.err
    lines = TYPED.findall(failed.err)
    assert lines, failed.err
    for line in lines:
        command = [str(data) if word == "DATA" else word for word in shlex.split(line)[1:]]
        followed = chestx(*command, *it.more.get(command[0], ()))
        assert followed.code == 0, (line, followed.err)
    if it.again:
        again = chestx(*words)
        assert again.code == 0, again.err
    assert [path.name for path in tmp_path.iterdir() if path.is_dir() and path.name not in {name, "bundle"}] == []


@pytest.mark.parametrize("name", STUDIES)
def test_the_next_command_works_as_it_is_typed_in_any_study(
    chestx: Chestx, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    placed(tmp_path, monkeypatch, finished, name)
    at = () if name == "study" else ("--study", name)
    for words in (("evaluate",), ("report",), ("compare", "baseline", "oneshot-50"), ("sensitivity", "--amounts", 0.5)):
        shown = chestx(*words, *at, env={"COLUMNS": "400"})
        assert shown.code == 0, shown.err
        line = next(line for line in shown.out.splitlines() if line.startswith("Next: chestx "))
        followed = chestx(*shlex.split(line.removeprefix("Next: "))[1:])
        # A variant that is not found good is not exported without being asked twice.
        assert followed.code == 0 or "--anyway" in followed.err, (line, followed.err)


def test_notes_name_commands_of_the_study_they_are_about(
    chestx: Chestx, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = placed(tmp_path, monkeypatch, finished, "my study")
    (study / "variants" / "dynamic-int8" / "evaluation.test.json").unlink()
    shown = chestx("export", "dynamic-int8", "--out", "bundle", "--study", "my study", "--full")
    lines = TYPED.findall(shown.out)
    assert lines, shown.out
    for line in lines:
        assert chestx(*shlex.split(line)[1:]).code == 0, line
    # What is stored is about no folder.
    assert "my study" not in " ".join(
        chestx("export", "dynamic-int8", "--out", "b", "--study", "my study", "--json").json()["notes"]
    )


@pytest.mark.parametrize("name", STUDIES)
def test_the_first_fold_is_named_where_it_lies(
    chestx: Chestx, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    at = () if name == "study" else ("--study", name)
    shown = chestx(*filled(SPLIT, data), "--folds", 2, *at)
    line = next(line for line in shown.out.splitlines() if line.startswith("Next: "))
    command = shlex.split(line.removeprefix("Next: "))[1:]
    assert chestx(*command, *TINY, "--epochs", 1).code == 0
    assert (tmp_path / name / "fold-1" / "variants" / "baseline").is_dir()
    failed = chestx("evaluate", *at, env={"COLUMNS": "400"})
    (remedy,) = TYPED.findall(failed.err)
    assert chestx(*shlex.split(remedy)[1:]).code == 0
    # Of a fold it is the fold that lacks the variant.
    failed = chestx("compare", "baseline", "oneshot-50", *at, env={"COLUMNS": "400"})
    assert failed.code == 1
    assert all("fold-" in line for line in TYPED.findall(failed.err)), failed.err


@pytest.mark.parametrize("folder", ["-data", "my data", "x's"])
def test_the_command_that_failed_is_named_with_its_images(
    chestx: Chestx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / folder)
    (tmp_path / folder / "NORMAL" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    failed = chestx(
        "split", "--image-size", 32, "--study=-s", "--positive=PNEUMONIA", "--", folder, env={"COLUMNS": "400"}
    )
    assert failed.code == 1, failed.err
    commands = TYPED.findall(failed.err)
    assert commands, failed.err
    for command in commands:
        followed = chestx(*shlex.split(command)[1:])
        assert followed.code == 0, (command, followed.err)
    assert (tmp_path / "-s" / "split.json").is_file()
