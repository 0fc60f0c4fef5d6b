"""Properties of every study, however small or odd, by generated examples."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chestx_cli.core.record import Stamp
from chestx_cli.evaluation.endpoints import Paired, compare
from chestx_cli.evaluation.predictions import Images, Predictions, predictions_of
from chestx_cli.evaluation.result_tables import EvaluationOptions, auroc_gap, evaluate_all
from chestx_cli.evaluation.statistics.auroc import auroc_difference, auroc_of
from chestx_cli.evaluation.statistics.intervals import Patients, draw_patients
from chestx_cli.evaluation.statistics.paired import Changes, difference_interval, margin_p
from chestx_cli.evaluation.verdicts import Compared, Margins, guards_of, in_words, judge
from chestx_cli.records.answers import BETTER, INCONCLUSIVE, INFERIOR, NOT_INFERIOR
from chestx_cli.records.preprocessing import Preprocessing
from chestx_cli.records.variant import VariantRecord

MARGINS = (0.0, 0.01, 0.02, 0.1, 0.5)
# How much a verdict decides.
STRENGTH = {INCONCLUSIVE: 0, INFERIOR: 1, NOT_INFERIOR: 1, BETTER: 1}


@dataclasses.dataclass(frozen=True)
class Study:
    """Images with their patients and truth, and two classifiers' probabilities."""

    images: Images
    patients: Patients
    first: Predictions
    second: Predictions


@st.composite
def studies(draw: st.DrawFn, most: int = 24) -> Study:
    """Return a study of 1 to `most` images: any patients, classes and scores, ties and constant models among them."""
    n = draw(st.integers(1, most))
    patient = draw(
        st.one_of(
            st.just(list(range(n))),
            st.just([0] * n),
            st.lists(st.integers(0, max(0, n // 2)), min_size=n, max_size=n),
        )
    )
    truth = draw(st.one_of(st.just([0] * n), st.just([1] * n), st.lists(st.integers(0, 1), min_size=n, max_size=n)))
    grid = st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0])
    scores = st.one_of(
        st.lists(grid, min_size=n, max_size=n),
        grid.map(lambda value: [value] * n),
        st.just([float(label) for label in truth]),
        st.just([1.0 - label for label in truth]),
    )
    first = draw(scores)
    second = draw(st.one_of(scores, st.just(first)))
    groups = np.char.mod("p%02d", np.array(patient))
    images = Images(ids=np.char.mod("i%02d", np.arange(n)), groups=groups, is_positive=np.array(truth))
    return Study(
        images=images,
        patients=draw_patients(groups, np.random.default_rng(0)),
        first=predictions_of(images, np.array(first), 0.5),
        second=predictions_of(images, np.array(second), 0.5),
    )


def compared(study: Study, margin: float) -> Compared:
    a, b, patients = study.first, study.second, study.patients
    return Compared(
        endpoint=compare(a.correct, b.correct, patients, margin),
        guards=guards_of("second", a, b, patients, Margins(), auroc_gap(a, b, patients)),
    )


def numbers(value: Any, where: str = "") -> list[tuple[str, float]]:
    """Return all floats in a value, with their positions."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [n for f in dataclasses.fields(value) for n in numbers(getattr(value, f.name), f"{where}.{f.name}")]
    if isinstance(value, dict):
        return [n for key, item in value.items() for n in numbers(item, f"{where}.{key}")]
    if isinstance(value, (list, tuple)):
        return [n for i, item in enumerate(value) for n in numbers(item, f"{where}[{i}]")]
    return [(where, value)] if isinstance(value, float) else []


def variant(name: str) -> VariantRecord:
    stamp = Stamp(command="", options={}, inputs={}, environment={}, created="", duration_s=0.0)
    return VariantRecord(
        stamp=stamp,
        name=name,
        kind="torch",
        method="train",
        parent=None,
        parent_sha256=None,
        backbone="tiny",
        classes=("NORMAL", "PNEUMONIA"),
        positive="PNEUMONIA",
        preprocessing=Preprocessing(),
        threshold=0.5,
        options={},
        model_file="model.safetensors",
        model_sha256="",
        model_bytes=1,
        parameters=1,
        nonzero_parameters=1,
        macs=1,
        split_sha256="",
    )


@settings(max_examples=120, deadline=None)
@given(study=studies(), margin=st.sampled_from(MARGINS))
def test_every_number_of_a_comparison_is_finite(study: Study, margin: float) -> None:
    found = compared(study, margin)
    (verdict,) = judge([found])
    for where, value in numbers((found, verdict)):
        assert math.isfinite(value), where
    endpoint = found.endpoint
    assert endpoint.interval.low - 1e-9 <= endpoint.difference <= endpoint.interval.high + 1e-9
    assert 0 <= endpoint.p <= 1
    assert 0 <= endpoint.p_margin <= 1
    assert verdict.needed_images is None or verdict.needed_images > endpoint.n
    assert (verdict.word == INCONCLUSIVE and not verdict.reasons) == (verdict.assumption is not None)
    assert in_words(found, verdict, "the baseline")


@settings(max_examples=60, deadline=None)
@given(study=studies(), faults=st.sampled_from([(), ("every image is called PNEUMONIA",)]))
def test_every_number_of_an_evaluation_is_finite_or_none(study: Study, faults: tuple[str, ...]) -> None:
    asked = EvaluationOptions(
        baseline="baseline", reference="the baseline", margins=Margins(), faults=faults, prevalences=(0.05, 0.3)
    )
    tables = evaluate_all(
        [variant("baseline"), variant("second")],
        {"baseline": study.first, "second": study.second},
        study.patients,
        asked,
    )
    for where, value in numbers(vars(tables)):
        assert math.isfinite(value), where
    if faults:
        assert all(row.word not in {NOT_INFERIOR, BETTER} for row in tables.comparisons)


@settings(max_examples=80, deadline=None)
@given(study=studies())
def test_exchanged_variants_exchange_the_difference(study: Study) -> None:
    there = compare(study.first.correct, study.second.correct, study.patients, 0.02)
    back = compare(study.second.correct, study.first.correct, study.patients, 0.02)
    assert (there.lost, there.won, there.p) == (back.won, back.lost, back.p)
    assert there.interval.bounds == pytest.approx((-back.interval.high, -back.interval.low), abs=1e-6)
    if 0 < study.images.is_positive.sum() < len(study.images.ids):
        a, b = (auroc_of(one.is_positive, one.probability) for one in (study.first, study.second))
        forth, again = auroc_difference(a, b, study.patients), auroc_difference(b, a, study.patients)
        assert forth.interval == pytest.approx((-again.interval[1], -again.interval[0]), abs=1e-6)
        assert forth.p == pytest.approx(again.p, abs=1e-5)
        # The p and the interval are of one method.
        outside = forth.interval[0] > 1e-6 or forth.interval[1] < -1e-6
        assert outside == (forth.p < 0.05 - 1e-5) or abs(forth.p - 0.05) < 1e-3


@settings(max_examples=60, deadline=None)
@given(study=studies(), seed=st.integers(0, 100))
def test_the_order_of_images_changes_nothing(study: Study, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(study.images.ids))
    images = Images(
        ids=study.images.ids[order], groups=study.images.groups[order], is_positive=study.images.is_positive[order]
    )
    moved = Study(
        images=images,
        patients=draw_patients(images.groups, np.random.default_rng(0)),
        first=predictions_of(images, study.first.probability[order], 0.5),
        second=predictions_of(images, study.second.probability[order], 0.5),
    )
    here, there = numbers(compared(study, 0.02)), numbers(compared(moved, 0.02))
    assert [where for where, _ in here] == [where for where, _ in there]
    assert [value for _, value in here] == pytest.approx([value for _, value in there], abs=1e-6)


ONE, NONE = np.ones(1, np.int64), np.zeros(0, np.int64)


@st.composite
def changes(draw: st.DrawFn) -> tuple[Changes, Changes]:
    """Return discordant images by patient, and the same with as many lost as won fewer."""
    lost = draw(st.lists(st.integers(1, 4), max_size=6))
    won = draw(st.lists(st.integers(1, 4), max_size=6))
    independent = draw(st.booleans())
    if independent:
        lost, won = [1] * sum(lost), [1] * sum(won)
    n_patients = draw(st.integers(max(1, len(lost) + len(won)), 300))
    n = max(n_patients, sum(lost) + sum(won)) + draw(st.integers(0, 300))
    if independent:
        n_patients = n
    fewer = draw(st.integers(0, min(sum(lost), sum(won))))
    seed = draw(st.integers(0, 1000))

    def of(counts: list[int]) -> npt.NDArray[np.int64]:
        return np.sort(np.array([count for count in counts if count], dtype=np.int64))[::-1]

    def without(counts: list[int]) -> list[int]:
        images = np.repeat(np.arange(len(counts)), counts)
        kept = np.random.default_rng(seed).permutation(images)[fewer:]
        return np.bincount(kept, minlength=len(counts)).tolist() if counts else []

    both = (
        Changes(n=n, n_patients=n_patients, lost_by_patient=of(a), won_by_patient=of(b))
        for a, b in ((lost, won), (without(lost), without(won)))
    )
    more, less = both
    return more, less


def paired(found: Changes, p: float, margin: float) -> Paired:
    return Paired(
        n=found.n,
        lost=found.lost,
        won=found.won,
        effect=found.design_effect,
        interval=difference_interval(found),
        p_images=p,
        p=p,
        test="",
        margin=margin,
        p_margin=margin_p(found, margin),
    )


SMALLEST = tuple(Changes(n=2, n_patients=2, lost_by_patient=one, won_by_patient=one) for one in (ONE, NONE))


@settings(max_examples=150, deadline=None)
@given(both=changes(), margin=st.sampled_from(MARGINS[1:]))
@example(both=SMALLEST, margin=0.01)
def test_more_agreement_never_says_less(both: tuple[Changes, Changes], margin: float) -> None:
    """Of the same images and patients and at the same difference, with fewer discordant images."""
    more, less = both
    assert less.difference == more.difference
    wide, narrow = difference_interval(more), difference_interval(less)
    assert wide.low <= narrow.low + 1e-9
    assert narrow.high <= wide.high + 1e-9
    # Where the loss observed exceeds the margin, fewer discordant images make that loss surer.
    if more.difference >= -margin:
        assert margin_p(less, margin) <= margin_p(more, margin) + 1e-9
        # The p of no difference is the same for both here: it has no part in the test of the margin.
        (weak,), (strong,) = (judge([Compared(endpoint=paired(one, 1.0, margin))]) for one in (more, less))
        assert STRENGTH[weak.word] <= STRENGTH[strong.word]


@settings(max_examples=60, deadline=None)
@given(both=changes(), margin=st.sampled_from(MARGINS[1:]))
def test_fewer_images_lost_is_no_evidence_of_a_loss(both: tuple[Changes, Changes], margin: float) -> None:
    more, less = both
    better = dataclasses.replace(more, lost_by_patient=less.lost_by_patient)
    # Above one half the loss observed exceeds the margin, and how many images a patient has can reverse the order.
    assert min(margin_p(better, margin), 0.5) <= margin_p(more, margin) + 1e-9
    assert difference_interval(better).low >= difference_interval(more).low - 1e-9


def test_a_copy_says_at_least_as_much_as_what_differs_on_two_images() -> None:
    copy = Changes(n=624, n_patients=427, lost_by_patient=NONE, won_by_patient=NONE)
    near = Changes(n=624, n_patients=427, lost_by_patient=ONE, won_by_patient=ONE)
    assert difference_interval(copy).high <= difference_interval(near).high + 1e-9
    assert margin_p(copy, 0.02) == pytest.approx(0.98**427)
    assert margin_p(copy, 0.02) <= margin_p(near, 0.02) < 0.025


@pytest.mark.parametrize("n_patients", [24, 269, 427])
def test_without_a_discordant_image_the_bound_covers_as_known(n_patients: int) -> None:
    """A patient loses all images or none: the bound is missed where none of the patients does, at most 2.5 %."""
    none = np.zeros(0, np.int64)
    copy = Changes(n=2 * n_patients, n_patients=n_patients, lost_by_patient=none, won_by_patient=none)
    bound = difference_interval(copy).high
    assert (1 - bound) ** n_patients == pytest.approx(0.025)
