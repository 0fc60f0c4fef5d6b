"""`chestx status`: the lineage, outdated parts, and the commands that renew them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path

import pytest

from conftest import TINY, Chestx, run_chestx

BATCH = ("--batch-size", "16")
TIMED = ("--rounds", "1", "--duration", "0.02", "--runtimes", "onnxruntime")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """Return a study with a variant of a variant, tested and timed; tests must not change it."""
    study = tmp_path_factory.mktemp("whole") / "study"
    for words in (
        ("train", data, *TINY, "--epochs", 1, *BATCH),
        ("prune",),
        ("quantize", "--from", "oneshot-50"),
        ("evaluate",),
        ("benchmark", *TIMED),
    ):
        outcome = run_chestx(*words, "--study", study)
        assert outcome.code == 0, outcome.err
    return study


@pytest.fixture
def study(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "study", copy_function=os.link))


def test_a_current_study_is_shown_as_a_tree_with_its_decision(chestx: Chestx, study: Path) -> None:
    outcome = chestx("status", "--study", study)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    at = {line.strip().split()[0]: len(line) - len(line.lstrip()) for line in lines if " yes " in line}
    assert at["baseline"] < at["oneshot-50"] < at["oneshot-50-dynamic-int8"]
    assert "3 variants, none outdated" in outcome.out
    evaluated = chestx("evaluate", "--study", study, "--json").json()
    record = chestx("status", "--study", study, "--json").json()
    assert record["answer"]["sentence"].endswith(evaluated["answer"]["sentence"])
    assert record["renewals"] == []


def test_the_next_command_makes_the_first_missing_part(chestx: Chestx, data: Path, tmp_path: Path) -> None:
    at = ("--study", tmp_path / "new")
    assert "Next: chestx split" in chestx("status", *at).err or chestx("status", *at).code == 1
    assert chestx("split", data, *at).code == 0
    assert chestx("status", *at, "--json").json()["answer"]["next_command"] == "chestx train"
    assert chestx("train", *TINY, "--epochs", 1, *BATCH, *at).code == 0
    record = chestx("status", *at, "--json").json()
    assert record["answer"]["next_command"] == "chestx evaluate"
    assert [(row["tested"], row["timed"]) for row in record["rows"]] == [("no", "no")]


def test_the_listed_commands_bring_everything_up_to_date(chestx: Chestx, study: Path) -> None:
    at = ("--study", study)
    assert chestx("train", *TINY, "--epochs", 2, *BATCH, "--force", *at).code == 0
    record = chestx("status", *at, "--json").json()
    assert [row["state"] for row in record["rows"]] == ["current", "stale", "stale"]
    assert [row["tested"] for row in record["rows"]] == ["no", "outdated", "outdated"]
    assert record["answer"]["next_command"] == record["renewals"][0]["command"]
    shown = chestx("status", "--study", study, "--full").out
    for row in record["renewals"]:
        assert f"{row['command']} --study {study}" in shown
        words = shlex.split(row["command"])[1:]
        outcome = chestx(*words, *(TIMED if words[0] == "benchmark" else ()), *at)
        assert outcome.code == 0, outcome.err
    renewed = chestx("status", *at, "--json").json()
    assert {(row["state"], row["tested"], row["timed"]) for row in renewed["rows"]} == {("current", "yes", "yes")}
    assert renewed["renewals"] == []


def test_a_modified_file_and_a_missing_parent_are_named(chestx: Chestx, study: Path) -> None:
    model = study / "variants" / "oneshot-50" / "model.safetensors"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.unlink()
    model.write_bytes(content)
    shown = {row["variant"]: row for row in chestx("status", "--study", study, "--json").json()["rows"]}
    assert shown["oneshot-50"]["state"] == "unusable"
    assert "model.safetensors" in shown["oneshot-50"]["reason"]
    shutil.rmtree(study / "variants" / "oneshot-50")
    record = chestx("status", "--study", study, "--json").json()
    shown = {row["variant"]: row for row in record["rows"]}
    assert shown["oneshot-50-dynamic-int8"]["state"] == "stale"
    assert "no longer exists" in shown["oneshot-50-dynamic-int8"]["reason"]


def test_edited_records_that_descend_from_each_other_are_each_listed_once(chestx: Chestx, study: Path) -> None:
    path = study / "variants" / "baseline" / "variant.json"
    document = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps({**document, "parent": "oneshot-50", "parent_sha256": "0" * 64}))
    record = chestx("status", "--study", study, "--json").json()
    assert sorted(row["variant"] for row in record["rows"]) == ["baseline", "oneshot-50", "oneshot-50-dynamic-int8"]
    assert {row["state"] for row in record["rows"]} == {"stale"}
