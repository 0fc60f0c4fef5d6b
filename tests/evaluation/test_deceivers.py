"""Variants that try to deceive a verdict, with the required verdicts: the table of docs/statistics.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from chestx_cli.evaluation.endpoints import compare
from chestx_cli.evaluation.predictions import Images, Predictions, predictions_of
from chestx_cli.evaluation.result_tables import auroc_gap
from chestx_cli.evaluation.statistics.intervals import Patients, draw_patients
from chestx_cli.evaluation.verdicts import BASELINE_FAULTS, Compared, Margins, Verdict, guards_of, judge
from chestx_cli.records.answers import INCONCLUSIVE, INFERIOR, NOT_INFERIOR

Floats = npt.NDArray[np.float64]
Deceiver = Callable[["Films"], Floats]


class Films:
    """Images of patients with one to six images each, and a good baseline's scores; half of the positives are viral."""

    def __init__(self, n: int = 800, seed: int = 3) -> None:
        self.rng = np.random.default_rng(seed)
        sizes: list[int] = []
        while sum(sizes) < n:
            sizes.append((1, 1, 2, 1, 6)[len(sizes) % 5])
        code = np.repeat(np.arange(len(sizes)), sizes)[:n]
        truth = self.rng.integers(0, 2, len(sizes))[code]
        self.viral = (truth == 1) & (code % 2 == 0)
        groups = np.char.mod("%04d", code)
        self.images = Images(ids=np.char.mod("%05d", np.arange(n)), groups=groups, is_positive=truth)
        self.patients: Patients = draw_patients(groups, np.random.default_rng(0))
        self.logit: Floats = 2.2 * (2 * truth - 1) + 1.4 * self.rng.normal(size=n)

    def predictions(self, logit: Floats) -> Predictions:
        return predictions_of(self.images, 1 / (1 + np.exp(-logit)), 0.5)


def judged(films: Films, second: Floats, first: Floats | None = None, faults: tuple[str, ...] = ()) -> Verdict:
    """Return the verdict of scores against the baseline's, or against other scores."""
    a, b = films.predictions(films.logit if first is None else first), films.predictions(second)
    endpoint = compare(a.correct, b.correct, films.patients, 0.02)
    guards = guards_of("second", a, b, films.patients, Margins(), auroc_gap(a, b, films.patients))
    return judge([Compared(endpoint=endpoint, guards=guards, faults=faults)])[0]


def shuffled_ranks(films: Films) -> Floats:
    """Return the baseline's decisions with scores that rank nothing beyond them, its mistakes at the far ends."""
    size = np.abs(films.rng.permutation(films.logit))
    wrong = (films.logit > 0) != (films.images.is_positive == 1)
    return np.asarray(np.where(films.logit > 0, 1.0, -1.0) * np.where(wrong, size.max() + 1, size))


DECEIVERS: dict[str, tuple[Deceiver, str, set[str]]] = {
    "copy of the baseline": (lambda films: films.logit, NOT_INFERIOR, set()),
    "baseline plus a little noise": (
        lambda films: films.logit + 0.02 * films.rng.normal(size=len(films.logit)),
        NOT_INFERIOR,
        set(),
    ),
    "constant": (
        lambda films: np.full(len(films.logit), 1.0),
        INFERIOR,
        {"accuracy", "specificity", "AUROC"},
    ),
    "one class, the ranking kept": (lambda films: films.logit + 20, INFERIOR, {"accuracy", "specificity"}),
    "flipped": (lambda films: -films.logit, INFERIOR, {"accuracy", "sensitivity", "specificity", "AUROC"}),
    "threshold moved": (lambda films: films.logit - 1.2, INFERIOR, {"sensitivity"}),
    "threshold moved the other way": (lambda films: films.logit + 1.2, INFERIOR, {"specificity"}),
    "blind to viral pneumonia": (
        lambda films: np.where(films.viral, -np.abs(films.logit), films.logit),
        INFERIOR,
        {"accuracy", "sensitivity", "AUROC"},
    ),
    "misses traded for false alarms": (
        # As many false alarms gone as cases lost: the accuracy stays.
        lambda films: traded(films, 25),
        INFERIOR,
        {"sensitivity"},
    ),
    "the same decisions, no ranking": (shuffled_ranks, INFERIOR, {"AUROC"}),
}


def traded(films: Films, images: int) -> Floats:
    logit = films.logit.copy()
    positive = films.images.is_positive == 1
    found = np.flatnonzero(positive & (logit > 0))[:images]
    alarms = np.flatnonzero(~positive & (logit > 0))[:images]
    logit[[*found, *alarms]] *= -1
    # Images won and lost alike, as far as there are false alarms.
    logit[found[len(alarms) :]] *= -1
    return logit


@pytest.mark.parametrize("name", DECEIVERS)
def test_a_deceiver_gets_its_verdict(name: str) -> None:
    films = Films()
    deceive, word, reasons = DECEIVERS[name]
    verdict = judged(films, deceive(films))
    assert verdict.word == word
    assert reasons <= set(verdict.reasons)


def test_traded_misses_leave_the_accuracy_as_it_was() -> None:
    films = Films()
    a, b = films.predictions(films.logit), films.predictions(traded(films, 25))
    assert a.correct.sum() == b.correct.sum()


@pytest.mark.parametrize("name", ["copy of the baseline", "baseline plus a little noise"])
def test_nothing_is_as_good_as_a_baseline_that_learned_nothing(name: str) -> None:
    films = Films()
    verdict = judged(films, DECEIVERS[name][0](films), faults=("every image is called PNEUMONIA",))
    assert (verdict.word, verdict.reasons) == (INCONCLUSIVE, (BASELINE_FAULTS,))


def test_a_few_images_are_enough_to_see_sensitivity_collapse() -> None:
    """Nine positive images of seven patients: 7 lost, 7 won elsewhere, so that the accuracy is the same."""
    groups = np.array([f"p{i // 2}" if i < 4 else f"p{i}" for i in range(9)] + [f"n{i}" for i in range(48)])
    truth = np.array([1] * 9 + [0] * 48)
    first = np.where(truth == 1, 0.9, 0.1)
    first[9:16] = 0.9
    second = np.where(truth == 1, 0.1, 0.1)
    second[:2] = 0.9
    images = Images(ids=np.char.mod("%02d", np.arange(57)), groups=groups, is_positive=truth)
    patients = draw_patients(groups, np.random.default_rng(0))
    a, b = (predictions_of(images, probability, 0.5) for probability in (first, second))
    endpoint = compare(a.correct, b.correct, patients, 0.02)
    assert (endpoint.lost, endpoint.won) == (7, 7)
    guards = guards_of("second", a, b, patients, Margins(), auroc_gap(a, b, patients))
    verdict = judge([Compared(endpoint=endpoint, guards=guards)])[0]
    assert verdict.word == INFERIOR
    assert "sensitivity" in verdict.reasons


def test_a_large_fall_that_few_images_show_is_not_passed() -> None:
    """2,000 normal films hide 3 of 10 positive ones: the accuracy holds within 0.02, and that is not enough."""
    truth = np.array([1] * 10 + [0] * 2000)
    groups = np.char.mod("%04d", np.arange(len(truth)))
    images = Images(ids=groups, groups=groups, is_positive=truth)
    patients = draw_patients(groups, np.random.default_rng(0))
    first = np.where(truth == 1, 0.9, 0.1)
    second = first.copy()
    second[:3] = 0.4
    a, b = (predictions_of(images, probability, 0.5) for probability in (first, second))
    endpoint = compare(a.correct, b.correct, patients, 0.02)
    assert endpoint.p_margin < 0.025
    guards = guards_of("second", a, b, patients, Margins(), auroc_gap(a, b, patients))
    verdict = judge([Compared(endpoint=endpoint, guards=guards)])[0]
    assert verdict.short == "inconclusive (sensitivity)"


def test_every_deceiver_is_in_the_documents() -> None:
    text = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text(encoding="utf-8")
    table = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert set(DECEIVERS) <= set(table)
