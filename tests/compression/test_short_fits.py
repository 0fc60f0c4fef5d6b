"""Short fits: continued as if begun with all their epochs, and the beginning of what the commands fit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chestx_cli.compression.pruning.allocation import require_sensitivity
from chestx_cli.compression.pruning.methods import Structured
from chestx_cli.compression.search import GUIDED, ChannelChoice, Network
from chestx_cli.compression.search_folds import open_folds, validation_of
from chestx_cli.compression.short_fits import ShortFits, Student
from chestx_cli.core.command import Run
from chestx_cli.core.errors import IntegrityError
from chestx_cli.core.progress import SilentReporter
from chestx_cli.inference.timing import Round
from chestx_cli.records.sensitivity import GroupSensitivityRecord
from chestx_cli.records.variant import TemperatureFit
from chestx_cli.store.directory import Study
from conftest import Chestx

RECIPE = Structured(finetune_epochs=2, round_to=1, floor=0.05, distill=True, lr=1e-3, batch_size=16, seed=7)
FIT = ("--batch-size", 16, "--lr", 0.001, "--seed", 7)


def begun() -> Run:
    return Run(line="chestx compress", command="chestx compress", options={}, reporter=SilentReporter())


@pytest.fixture
def fits(study: Path) -> ShortFits:
    students = {"tiny": Student.of("tiny", fetch=False)}
    (fold,) = open_folds(
        begun(), Study(study), "baseline", RECIPE, students, threads=1, runtime="onnxruntime", renews=False
    )
    return fold.fits


def elsewhere(fits: ShortFits, folder: Path) -> ShortFits:
    """Return the same fits without anything that was done before."""
    return dataclasses.replace(fits, results=folder / "cache", states=folder / "states")


def test_a_fit_that_is_continued_is_the_one_begun_with_all_epochs(fits: ShortFits, tmp_path: Path) -> None:
    percent = fits.prober.nearest(40, fits.cutting)
    for network in (Network(percent=percent, choice=ChannelChoice(criterion="l2")), Network(student="tiny")):
        first = fits.predictions(network, 1)
        assert fits.has(network, 1)
        assert not fits.has(network, 2)
        continued = fits.predictions(network, 2)
        (tmp_path / "cache").mkdir(exist_ok=True)
        at_once = elsewhere(fits, tmp_path).predictions(network, 2)
        assert np.array_equal(continued.probability, at_once.probability)
        assert not np.array_equal(continued.probability, first.probability)
        assert np.array_equal(fits.predictions(network, 1).probability, first.probability)
        # Not the state of more epochs, if only that is left.
        (tmp_path / f"other-{network.student}").mkdir()
        again = dataclasses.replace(fits, results=tmp_path / f"other-{network.student}")
        assert np.array_equal(again.predictions(network, 1).probability, first.probability)
    assert list(fits.states.iterdir())
    fits.clear()
    assert not fits.states.exists()
    # The results stay.
    assert fits.has(network, 2)


def test_a_short_fit_is_what_the_commands_begin_with(fits: ShortFits, study: Path, chestx: Chestx) -> None:
    percent = fits.prober.nearest(40, fits.cutting)
    network = Network(percent=percent, choice=ChannelChoice(criterion="l2"))
    prune = (
        *("prune", "--method", "structured", "--amount", percent / 100, "--criterion", "l2"),
        *("--schedule", "constant", "--finetune-epochs", 2, "--round-to", 1, "--floor", 0.05),
    )
    assert chestx("sensitivity", "--study", study, "--structured", "--criterion", "l2").code == 0
    target = Study(study)
    baseline = target.read_variant("baseline")
    guide = require_sensitivity(begun(), target, baseline, GroupSensitivityRecord)
    fits = dataclasses.replace(fits, guide=guide)
    guided = Network(percent=percent, choice=ChannelChoice(criterion="l2", method=GUIDED))
    distill = ("distill", "--backbone", "tiny", "--weights", "none", "--epochs", 2, "--name", "taught")
    # The statistics of a narrower network's weights are re-estimated first.
    weights = study / "variants" / "baseline" / "model.safetensors"
    fits.students["tiny:0.5"] = Student(backbone="tiny", weights=str(weights), file=weights, width=0.5)
    half = (*distill[:3], "--weights", weights, "--width", 0.5, "--epochs", 2, "--name", "narrow")
    for words, one, name in (
        ((*prune, "--name", "pruned"), network, "pruned"),
        ((*prune[:2], "guided", *prune[3:], "--name", "guided"), guided, "guided"),
        (distill, Network(student="tiny"), "taught"),
        (half, Network(student="tiny:0.5"), "narrow"),
    ):
        outcome = chestx(*words, *FIT, "--study", study)
        assert outcome.code == 0, outcome.err
        stored = validation_of(begun(), target, target.read_split(), target.read_variant(name), 1)
        assert fits.predictions(one, 2).probability == pytest.approx(stored.probability, abs=1e-5)


def test_a_damaged_result_is_named(fits: ShortFits) -> None:
    network = Network(student="tiny")
    fits.predictions(network, 1)
    (path,) = fits.results.glob("short-fit-*.json")
    path.write_text("[0.5]")
    with pytest.raises(IntegrityError, match="is damaged: it is of other images"):
        fits.predictions(network, 1)


def test_the_temperature_is_fitted_where_that_of_the_parent_was(fits: ShortFits) -> None:
    network = Network(student="tiny")
    truth = fits.predictions(network, 1).is_positive
    (path,) = fits.results.glob("short-fit-*.json")
    # Too sure: right for most images, but wrong for each fifth.
    right = np.arange(len(truth)) % 5 != 0
    bare = np.where((truth == 1) == right, 0.999, 0.001)
    path.write_text(json.dumps(bare.tolist()))
    assert np.array_equal(fits.predictions(network, 1).probability, bare)
    fitted = TemperatureFit(images=len(truth), log_loss_before=1.0, log_loss_after=0.5)
    scaled = dataclasses.replace(fits, parent=fits.parent.replace(temperature=2.0, temperature_fit=fitted))
    probability = scaled.predictions(network, 1).probability
    # The temperature of lowest log-loss makes the probability the share of correct decisions.
    assert probability[bare > 0.5] == pytest.approx((truth[bare > 0.5] == 1).mean(), abs=0.1)
    assert ((probability > 0.5) == (bare > 0.5)).all()
    assert 1 - probability.max() == pytest.approx(probability.min())


def test_what_earlier_runs_fitted_and_measured_is_renewed_once(
    fits: ShortFits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def time_latency(models: list[Any], *_: object) -> list[list[Round]]:
        return [[Round(seconds={1: (0.001,)})] for _ in models]

    # Rough times are not kept.
    monkeypatch.setattr("chestx_cli.compression.cost_probe.time_latency", time_latency)
    network = Network(student="tiny")
    cost = fits.prober.cost(fits.initial("tiny"), "tiny")
    first = fits.predictions(network, 1).probability
    fits.predictions(network, 2)
    (path, _), (costs,) = sorted(fits.results.glob("short-fit-*.json")), fits.results.glob("cost-*.json")
    path.write_text(json.dumps([0.5] * len(first)))
    assert fits.predictions(network, 1).probability == pytest.approx(0.5)
    prober = dataclasses.replace(fits.prober, renews=True, renewed=set())
    again = dataclasses.replace(fits, renews=True, renewed=set(), prober=prober)
    assert not again.has(network, 2)
    assert np.array_equal(again.predictions(network, 1).probability, first)
    # Of the longer fit neither the result nor the state is left, and the new one is used.
    assert not again.has(network, 2)
    assert again.has(network, 1)
    before = costs.stat().st_mtime_ns
    assert prober.cost(fits.initial("tiny"), "tiny").keys() == cost.keys()
    renewed = costs.stat().st_mtime_ns
    assert renewed > before
    prober.cost(fits.initial("tiny"), "tiny")
    assert costs.stat().st_mtime_ns == renewed
