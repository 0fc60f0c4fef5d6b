"""`chestx compress`: the chosen variant meets the limits, or the nearest variant is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Chestx

QUICK = ("--round-to", 1, "--finetune-epochs", 1, "--batch-size", 16, "--threads", 1, "--criteria", "l2")


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return what sets the latency of every model to a share of its untrained network's MACs."""

    def pretend(ms: float) -> None:
        from chestx_cli.inference.timing import Round

        def time_latency(models: list[Any], *_: object) -> list[list[Round]]:
            sizes = [Path(model.path).stat().st_size for model in models]
            return [[Round(seconds={1: (ms * size / 1e9,)})] for size in sizes]

        monkeypatch.setattr("chestx_cli.compression.cost_probe.time_latency", time_latency)
        monkeypatch.setattr("chestx_cli.compression.searched_models.time_latency", time_latency)

    return pretend


def test_the_chosen_variant_keeps_the_limits_and_is_one_as_any(
    chestx: Chestx, study: Path, costs: Callable[[float], None]
) -> None:
    costs(1.0)
    words = ("compress", "--study", study, "--max-size-mb", 0.012, "--max-drop", 1, *QUICK)
    outcome = chestx(*words, "--json")
    assert outcome.code == 0, outcome.err
    record = outcome.json()
    row = next(row for row in record["rows"] if row["variant"] == record["chosen"])
    assert row["missed"] == []
    assert row["size_mb"] <= 0.012
    assert record["rows"][0]["variant"] == "baseline"
    stored = json.loads((study / "variants" / record["chosen"] / "variant.json").read_text())
    assert stored["model_sha256"] == row["model_sha256"]
    assert stored["parent"] is not None
    assert chestx("evaluate", record["chosen"], "--study", study).code == 0
    again = chestx(*words, "--json")
    assert [row["model_sha256"] for row in again.json()["rows"]] == [row["model_sha256"] for row in record["rows"]]
    assert again.err.count("already done") == len(record["rows"]) - 1


def test_what_cannot_be_reached_has_its_own_exit_code_and_names_the_nearest(
    chestx: Chestx, study: Path, costs: Callable[[float], None]
) -> None:
    costs(1.0)
    words = ("--max-size-mb", 0.0001, "--max-drop", 0, "--time-budget", 0.0001)
    outcome = chestx("compress", "--study", study, *words, *QUICK, "--json")
    assert outcome.code == 3, outcome.err
    record = outcome.json()
    assert record["chosen"] is None
    assert record["nearest"] in {row["variant"] for row in record["rows"]}
    assert "Not reachable" in record["notes"][0]
    # Out of time: what is begun first is made, and nothing after it.
    assert len(record["rows"]) == 2
    assert "no time left" in outcome.err


def test_limits_are_needed(chestx: Chestx, study: Path) -> None:
    outcome = chestx("compress", "--study", study)
    assert outcome.code == 2
    assert "--max-latency-ms" in outcome.err
    assert chestx("compress", "--study", study, "--max-size-mb", 1, "--criteria", "nonsense").code == 2


def test_channels_in_coarse_steps_end_in_what_can_be_built(
    chestx: Chestx, study: Path, costs: Callable[[float], None]
) -> None:
    costs(1.0)
    words = ("compress", "--study", study, "--max-size-mb", 0.0001, "--max-drop", 1, *QUICK[2:], "--round-to", 8)
    outcome = chestx(*words, "--json")
    assert outcome.code == 3, outcome.err
    rows = outcome.json()["rows"]
    assert len(rows) > 1
    for row in rows[1:]:
        assert f"structured-{round(100 * row['macs_removed'])}-" in row["variant"] or row["macs_removed"] == 0
