"""`chestx demo`: synthetic images, then every command as a user would type it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from chestx_cli.commands import demo
from conftest import Chestx
from support.small_demo import SMALL

STEPS = ["split", "train", "prune", "prune", "prune", "quantize", "evaluate", "benchmark", "report"]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "WHOLE", SMALL)
    monkeypatch.setattr(demo, "QUICK", SMALL)


def test_demo_runs_every_command_and_shows_it(chestx: Chestx, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    outcome = chestx("demo", "--out", out, "--images", 60)
    assert outcome.code == 0, outcome.err
    typed = [shlex.split(line[2:]) for line in outcome.out.splitlines() if line.startswith("$ chestx")]
    assert [words[1] for words in typed] == STEPS
    assert all("--study" in words for words in typed)
    assert (out / "study" / "report" / "index.html").exists()
    assert "synthetic" in outcome.out
    again = chestx("demo", "--out", out, "--images", 60)
    assert again.code == 0
    assert "already done" in again.err


def test_demo_replaces_only_its_own_images(chestx: Chestx, tmp_path: Path) -> None:
    own = tmp_path / "demo" / "data"
    own.mkdir(parents=True)
    (own / "patient.png").write_text("precious")
    for words in ((), ("--force",)):
        outcome = chestx("demo", "--out", tmp_path / "demo", "--images", 40, *words)
        assert outcome.code == 1
        assert "--out" in outcome.err
    assert (own / "patient.png").read_text() == "precious"
