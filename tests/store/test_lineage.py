"""Stale variants, whose parent has been replaced: marked wherever they are shown, with the command that renews them."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

from chestx_cli.records.variant import VariantRecord
from chestx_cli.store.directory import Study
from chestx_cli.store.documents import write_record
from chestx_cli.store.lineage import outdated
from conftest import TINY, Chestx, Outcome, run_chestx, tree
from support.made_up_study import FIVE, write_study

BATCH = ("--batch-size", "16")
GRANDCHILD = "oneshot-50-iterative-1x20"
PARENT_STALE = (
    "STALE: oneshot-50 was made from an earlier version of baseline. Its comparison with the present "
    'models cannot show what compression costs. Make it again: run "chestx prune --force".'
)
CHILD_STALE = (
    f"STALE: {GRANDCHILD} was made from oneshot-50, which is stale. Its comparison with the present models cannot "
    'show what compression costs. Then make this variant again: run "chestx prune --method iterative '
    '--steps 1 --finetune-epochs 1 --batch-size 16 --from oneshot-50 --force".'
)


@pytest.fixture(scope="module")
def retrained(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """Return a study with a variant of a variant, whose baseline was trained anew since; tests must not change it."""
    study = tmp_path_factory.mktemp("retrained") / "study"
    for words in (
        ("train", data, *TINY, "--epochs", 1, *BATCH),
        ("prune",),
        ("prune", "--method", "iterative", "--steps", 1, "--finetune-epochs", 1, "--from", "oneshot-50", *BATCH),
        ("quantize", "--from", "oneshot-50"),
        ("evaluate",),
        ("train", *TINY, "--epochs", 2, *BATCH, "--force"),
        ("evaluate",),
    ):
        outcome = run_chestx(*words, "--study", study)
        assert outcome.code == 0, outcome.err
    return study


@pytest.fixture
def stale(retrained: Path, tmp_path: Path) -> Path:
    own = tmp_path / "study"
    shutil.copytree(retrained, own, copy_function=os.link)
    return own


def text_of(outcome: Outcome) -> str:
    """Return everything that a command printed, on one line."""
    assert outcome.code == 0, outcome.err
    return " ".join((outcome.out + outcome.err).split())


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate",),
        ("compare", "baseline", GRANDCHILD),
        ("compare", GRANDCHILD, "baseline"),
        ("benchmark", GRANDCHILD, "--rounds", "1", "--duration", "0.02", "--runtimes", "onnxruntime"),
        ("export", GRANDCHILD, "--out", "BUNDLE"),
        ("compress", "--from", GRANDCHILD, "--max-size-mb", "5", "--finetune-epochs", "1", "--time-budget", "0.001"),
        ("prune", "--from", GRANDCHILD, "--amount", "0.3"),
        ("quantize", "--from", GRANDCHILD),
        ("sensitivity", "--from", GRANDCHILD, "--amounts", "0.5"),
        ("report",),
    ],
)
def test_a_variant_of_a_variant_is_named_with_what_renews_it(
    chestx: Chestx, stale: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    words = [str(tmp_path / "bundle") if word == "BUNDLE" else word for word in command]
    outcome = chestx(*words, "--study", stale, "--full")
    said = text_of(outcome)
    parent, child = (text.replace(' --force"', f' --force --study {stale}"') for text in (PARENT_STALE, CHILD_STALE))
    assert said.count(parent) == said.count(child) >= 1, outcome.out
    # What to make again first comes first.
    assert said.index(parent) < said.index(child)
    blocks = [block for block in outcome.out.strip().split("\n\n") if not block.startswith(("  ", "$ "))]
    assert "STALE" in blocks[0].splitlines()[1]
    assert all(any("STALE" in line for line in block.splitlines()[:2]) for block in blocks[1:]), outcome.out


def test_what_is_not_stale_is_not_called_so(chestx: Chestx, stale: Path) -> None:
    assert chestx("prune", "--amount", "0.4", "--study", stale).code == 0
    for words in (("evaluate", "oneshot-40"), ("compare", "baseline", "oneshot-40")):
        assert "STALE" not in text_of(chestx(*words, "--study", stale))


def test_the_report_names_it_in_words_tables_and_figures(chestx: Chestx, stale: Path) -> None:
    assert (
        chestx("benchmark", "--rounds", 1, "--duration", 0.02, "--runtimes", "onnxruntime", "--study", stale).code == 0
    )
    record = chestx("report", "--study", stale, "--json").json()
    statements = [row["text"] for row in record["statements"]]
    assert {PARENT_STALE, CHILD_STALE} <= set(statements)
    page = (stale / "report" / "report.md").read_text()
    final = page.split("## Final comparison")[1].split("\n### ")[0]
    for name in ("oneshot-50", GRANDCHILD):
        assert any(line.startswith(f"| {name} |") and line.endswith("(stale) |") for line in final.splitlines())
    assert "STALE: All variants" in final
    assert "STALE" not in page.split("## Training of the baseline")[1].split("\n### ")[0]
    for name in ("comparison", "pareto", "pruning-comparison"):
        drawn = (stale / "report" / "figures" / f"{name}.svg").read_text()
        assert drawn.count("STALE") >= 4, name
        assert "STALE: " in drawn
    assert "STALE" not in (stale / "report" / "figures" / "training-curves.svg").read_text()


def test_the_commands_that_are_named_renew_it(chestx: Chestx, stale: Path) -> None:
    notes = chestx("evaluate", "--study", stale, "--json").json()["notes"]
    commands = [command for note in notes for command in re.findall(r'run "(chestx [^"]+ --force)"', note)]
    assert len(commands) == 3
    for command in commands:
        outcome = chestx(*shlex.split(command)[1:], "--study", stale)
        assert outcome.code == 0, outcome.err
    record = chestx("evaluate", "--study", stale, "--json").json()
    assert "STALE" not in json.dumps(record)
    # With the same weights again, nothing is another model.
    assert chestx("train", *TINY, "--epochs", 2, *BATCH, "--force", "--study", stale).code == 0
    assert chestx("evaluate", "--study", stale).code == 0
    assert "STALE" not in text_of(chestx("compare", "baseline", GRANDCHILD, "--study", stale))


def test_a_parent_that_is_gone_or_damaged_is_named(chestx: Chestx, stale: Path) -> None:
    shutil.rmtree(stale / "variants" / "oneshot-50")
    gone = f"STALE: {GRANDCHILD} was made from oneshot-50, which no longer exists."
    before = tree(stale)
    for words in (("compare", "baseline", GRANDCHILD), ("compare", GRANDCHILD, "baseline")):
        said = text_of(chestx(*words, "--study", stale))
        assert gone in said
        assert 'Make oneshot-50 again, then this variant: run "chestx prune --method iterative' in said
    assert tree(stale) == before
    (stale / "variants" / "oneshot-50").mkdir()
    (stale / "variants" / "oneshot-50" / "variant.json").write_text("{")
    assert gone in text_of(chestx("compare", "baseline", GRANDCHILD, "--study", stale))


def test_the_stamp_of_an_earlier_baseline_stays_with_what_was_made_from_it(chestx: Chestx, stale: Path) -> None:
    # The baseline of the first training called all images PNEUMONIA.
    said = text_of(chestx("compare", "oneshot-50", GRANDCHILD, "--study", stale))
    told = "UNPROVEN: the earlier baseline that oneshot-50 was made from is not shown to have learned anything ("
    assert told in said


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> VariantRecord:
    return write_study(tmp_path_factory.mktemp("bare"), FIVE[:1], epochs=1).read_variant("baseline")


EARLIER = "was made from an earlier version of {}"
ABOVE = "was made from {}, which is stale"
CIRCLE = "is recorded as made from {}, which descends from it"


@pytest.mark.parametrize(
    ("parents", "reasons"),
    [
        ({"a": None, "b": "a", "c": "b", "d": "c"}, {}),
        ({"a": None, "b": "a before", "c": "b", "d": "c"}, {"b": (EARLIER, "a"), "c": (ABOVE, "b"), "d": (ABOVE, "c")}),
        ({"a": None, "b": "a", "c": "b before", "d": "b"}, {"c": (EARLIER, "b")}),
        ({"b": "a", "c": "b"}, {"b": ("was made from {}, which no longer exists", "a"), "c": (ABOVE, "b")}),
        ({"a": "a", "b": "a"}, {"a": ("is recorded as made from itself", "a"), "b": (ABOVE, "a")}),
        ({"a": "b", "b": "a", "c": "b"}, {"a": (CIRCLE, "b"), "b": (CIRCLE, "a"), "c": (ABOVE, "b")}),
        ({"a": "b", "b": "a before"}, {"a": (CIRCLE, "b"), "b": (CIRCLE, "a")}),
    ],
)
def test_why_variants_are_stale(
    bare: VariantRecord, parents: dict[str, str | None], reasons: dict[str, tuple[str, str]]
) -> None:
    """A variant's name is its weights; "a before" are those of another `a`."""
    records = [
        dataclasses.replace(
            bare, name=name, model_sha256=name, parent=parent and parent.split()[0], parent_sha256=parent
        )
        for name, parent in parents.items()
    ]
    for order in (records, records[::-1]):
        assert outdated(order) == {name: text.format(parent) for name, (text, parent) in reasons.items()}


def test_records_that_go_in_a_circle_do_not_hang(chestx: Chestx, stale: Path) -> None:
    target = Study(stale)
    parent, child = target.read_variant("oneshot-50"), target.read_variant(GRANDCHILD)
    write_record(
        target.variant("oneshot-50") / "variant.json",
        parent.replace(parent=GRANDCHILD, parent_sha256=child.model_sha256),
    )
    for words in (("compare", "baseline", GRANDCHILD), ("export", GRANDCHILD, "--out", stale / "bundle")):
        said = text_of(chestx(*words, "--study", stale))
        assert f"STALE: {GRANDCHILD} is recorded as made from oneshot-50, which descends from it." in said
        assert f"STALE: oneshot-50 is recorded as made from {GRANDCHILD}, which descends from it." in said
        assert "No command can make it again: remove its folder variants/oneshot-50, and make it from another" in said
    shown = chestx("status", "--study", stale, "--json")
    assert "No command can make it again: remove its folder variants/oneshot-50" in text_of(shown)
    # Nor does it help to make again what was made from it.
    assert all("--force" not in row["command"] for row in shown.json()["renewals"])


@pytest.mark.parametrize("force", [(), ("--force",)], ids=["", "force"])
@pytest.mark.parametrize(
    "command",
    [
        ("prune", "--name", "baseline"),
        ("prune", "--from", "oneshot-50", "--name", "oneshot-50"),
        ("prune", "--from", GRANDCHILD, "--name", "baseline"),
        ("quantize", "--name", "baseline", "--method", "static"),
        ("quantize", "--from", GRANDCHILD, "--name", "oneshot-50", "--restart"),
        ("distill", "--name", "baseline", "--weights", "none", "--epochs", "1"),
    ],
    ids=" ".join,
)
def test_a_variant_cannot_replace_one_that_it_is_made_from(
    chestx: Chestx, stale: Path, command: tuple[str, ...], force: tuple[str, ...]
) -> None:
    before = tree(stale)
    outcome = chestx(*command, *force, "--study", stale)
    assert outcome.code == 2
    error = outcome.err.partition("error: ")[2]
    assert "cannot be made from" in error
    assert "give the new variant another --name" in error
    assert "--force" not in error
    assert tree(stale) == before
