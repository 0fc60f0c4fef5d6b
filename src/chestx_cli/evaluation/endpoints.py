"""Endpoints: what a verdict is on, and how two variants are compared by it over the cells of a study."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from chestx_cli.core.errors import StudyError
from chestx_cli.core.registry import Registry
from chestx_cli.evaluation.predictions import Cell, CellPair, Predictions, by_fold, sides, stacked
from chestx_cli.evaluation.statistics.auroc import (
    Auroc,
    AurocDifference,
    auroc_difference,
    auroc_interval,
    auroc_of,
    mean_over_folds,
    mean_over_seeds,
)
from chestx_cli.evaluation.statistics.influence import Measured, Total, brier_of, mean_of, sensitivity_at, total_of
from chestx_cli.evaluation.statistics.intervals import (
    Interval,
    Patients,
    draw_patients,
    proportion_interval,
    undrawn_patients,
)
from chestx_cli.evaluation.statistics.paired import (
    changes_of,
    difference_interval,
    margin_p,
    mcnemar_exact,
    swap_test,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ACCURACY = "accuracy"
AUROC = "AUROC"
MCNEMAR, SWAP = "McNemar", "swap of patients"
# Of the bootstrap draws of patients in an interval of accuracy; the default seed of the commands.
DRAWS_SEED = 42


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Two classifiers' decisions on the same n images, before any correction for other comparisons.

    lost, won: discordant images, those that only the first, and only the second, gets right, of all seeds together
    where images are predicted under several. effect: the design effect of the difference. p: the two-sided p of no
    difference, by `test`. p_margin: the one-sided p of a loss of `margin`. measured: the difference where it
    is not that of these counts by n, on other endpoints and of several seeds; interval and p values are then of it.
    """

    n: int
    lost: int
    won: int
    effect: float
    interval: Interval
    p_images: float
    p: float
    test: str
    margin: float
    p_margin: float
    endpoint: str = ACCURACY
    measured: float | None = None
    seeds: int = 1

    @property
    def difference(self) -> float:
        """Return the second classifier's endpoint less the first's (accuracy unless `measured` is set)."""
        return (self.won - self.lost) / self.n if self.measured is None else self.measured


def compare(
    first_correct: npt.NDArray[np.bool_], second_correct: npt.NDArray[np.bool_], patients: Patients, margin: float
) -> Paired:
    """Return the comparison of the second classifier's decisions with the first's on the same images [N]."""
    changes = changes_of(first_correct, second_correct, patients)
    p_images = mcnemar_exact(changes.lost, changes.won)
    change = second_correct.astype("float64") - first_correct.astype("float64")
    return Paired(
        n=changes.n,
        lost=changes.lost,
        won=changes.won,
        effect=changes.design_effect,
        interval=difference_interval(changes),
        p_images=p_images,
        p=swap_test(patients.sums(change).round().astype("int64")) if changes.repeated else p_images,
        test=SWAP if changes.repeated else MCNEMAR,
        margin=margin,
        p_margin=margin_p(changes, margin),
    )


class Difference(Protocol):
    """The second variant's value less the first's, with a test of any hypothesis about it; larger is better."""

    @property
    def value(self) -> float:
        """Return the difference."""

    @property
    def p(self) -> float:
        """Return the two-sided p of no difference."""

    @property
    def method(self) -> str:
        """Return the name of the method of interval and p."""

    def bounds(self) -> tuple[float, float]:
        """Return the 95 % interval."""

    def p_at_most(self, difference: float) -> float:
        """Return the one-sided p of the hypothesis that the true difference is at most `difference`."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A variant's value on an endpoint over all cells, in the endpoint's own direction, with its 95 % interval."""

    value: float
    interval: Interval


# A measure of one variant on one cell's images, by image; raises StudyError where it is undefined on them.
Measure = Callable[[Predictions], Measured]
# A better method than that of influence values, for the difference and for one variant's value.
DifferenceOf = Callable[[Sequence[CellPair]], Difference]
ComparePaired = Callable[[Sequence[CellPair], float], "Paired"]
EstimateOf = Callable[[Sequence[Cell]], Estimate]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """What verdicts are based on: a measure of each image, and the non-inferiority margin.

    `noun` is its name in sentences. `is_share`: a share of images, whose differences are in percentage points.
    `is_loss`: smaller is better; differences are gains, so that larger ones are always better. `exactly`, `difference`
    and `level` replace the general methods where a measure has better ones.
    """

    measure: Measure
    margin: float
    noun: str
    is_share: bool = False
    is_loss: bool = False
    exactly: ComparePaired | None = None
    difference: DifferenceOf | None = None
    level: EstimateOf | None = None

    def compare(self, pairs: Sequence[CellPair], margin: float) -> Paired:
        """Return the comparison of the second variant with the first over cells; one split is one cell.

        Values are of each fold by itself; a patient counts once, by the mean over seeds. Raises StudyError where the
        endpoint is undefined on these images, IntegrityError where the cells do not fit together.
        """
        if self.exactly:
            return self.exactly(pairs, margin)
        found = self.difference(pairs) if self.difference else self._by_influence(pairs)
        low, high = found.bounds()
        first, second = (stacked(side) for side in sides(pairs))
        patients = undrawn_patients(first.images.groups)
        changes = changes_of(first.correct, second.correct, patients)
        return Paired(
            n=len(set(first.images.ids.tolist())),
            lost=changes.lost,
            won=changes.won,
            effect=changes.design_effect,
            interval=Interval(low=low, high=high, method=found.method),
            p_images=mcnemar_exact(changes.lost, changes.won),
            p=found.p,
            test=found.method,
            margin=margin,
            p_margin=found.p_at_most(-margin),
            endpoint=ENDPOINTS.name_of(self),
            measured=found.value,
            seeds=len({pair.seed for pair in pairs}),
        )

    def _by_influence(self, pairs: Sequence[CellPair]) -> Total:
        first, second = (self.total(side) for side in sides(pairs))
        gain = first.less(second) if self.is_loss else second.less(first)
        return gain.with_one_more(1 / gain.images if self.is_share else 0.0)

    def total(self, cells: Sequence[Cell]) -> Total:
        """Return one variant's value over all cells with each patient's part of its error, to first order."""
        folds = by_fold(cells)
        return total_of(
            [[self.measure(own) for own in seeds] for seeds in folds], [seeds[0].images.groups for seeds in folds]
        )

    def estimate(self, cells: Sequence[Cell]) -> Estimate:
        """Return one variant's value over all cells: of each fold by itself, the mean over seeds within a fold."""
        if self.level:
            return self.level(cells)
        total = self.total(cells)
        if self.is_share:
            return Estimate(value=total.value, interval=total.share_interval())
        return Estimate(value=total.value, interval=total.loss_interval() if self.is_loss else total.interval)

    def change(self, difference: float, interval: tuple[float, float]) -> str:
        """Return a difference with its 95 % interval in words."""
        if self.is_share:
            low, high = (f"{100 * end:+.1f}" for end in interval)
            return f"{100 * difference:+.1f} points of {self.noun}, 95 % CI {low} to {high}"
        gain = f"gain in {self.noun} {difference:+.3f}" if self.is_loss else f"{difference:+.3f} of {self.noun}"
        return f"{gain}, 95 % CI {interval[0]:+.3f} to {interval[1]:+.3f}"

    @property
    def change_title(self) -> str:
        """Return the title of a column of differences."""
        return f"{'Gain in' if self.is_loss else 'Difference of'} {self.noun}"

    @property
    def worse(self) -> str:
        """Return in words what a variant with a worse value is."""
        return f"of higher {self.noun}" if self.is_loss else f"of lower {self.noun}"


ENDPOINTS: Registry[Endpoint] = Registry("endpoint", of=Endpoint)


def endpoint_of(name: str) -> Endpoint:
    """Return an endpoint by name, also that of a plugin that is no longer installed, which then only has a name."""
    return ENDPOINTS[name] if name in ENDPOINTS else Endpoint(measure=_gone, margin=0.0, noun=name)


def _gone(_own: Predictions) -> Measured:
    raise StudyError("this endpoint's plugin is not installed", "install it again")


def with_both_classes(own: Predictions, what: str) -> Predictions:
    """Return predictions; raises StudyError where a class has no images."""
    if not 0 < int(own.is_positive.sum()) < len(own.is_positive):
        raise StudyError(f"{what} needs images of both classes", "use --endpoint accuracy")
    return own


def _compare_accuracy(pairs: Sequence[CellPair], margin: float) -> Paired:
    """Return the exact tests and Tango's interval; an image's predictions under several seeds are its patient's."""
    first, second = (stacked(side) for side in sides(pairs))
    found = compare(first.correct, second.correct, undrawn_patients(first.images.groups), margin)
    seeds = len({pair.seed for pair in pairs})
    if seeds == 1:
        return found
    images = len(set(first.images.ids.tolist()))
    return dataclasses.replace(found, n=images, measured=found.difference, p_images=found.p, seeds=seeds)


def _accuracy(cells: Sequence[Cell]) -> Estimate:
    import numpy as np

    own = stacked(cells)
    patients = draw_patients(own.images.groups, np.random.default_rng(DRAWS_SEED))
    interval = proportion_interval(own.correct, np.ones(len(own.correct), dtype=bool), patients)
    if interval is None:
        raise ValueError("a cell has images")
    return Estimate(value=float(own.correct.mean()), interval=interval)


def _mean_auroc(cells: Sequence[Cell]) -> tuple[Auroc, Patients]:
    """Return the mean over folds of the mean AUROC over seeds, with the patients."""
    found = [
        mean_over_seeds([auroc_of(own.is_positive, with_both_classes(own, "an AUROC").probability) for own in seeds])
        for seeds in by_fold(cells)
    ]
    return mean_over_folds(found, [undrawn_patients(seeds[0].images.groups) for seeds in by_fold(cells)])


def auroc_within_folds(pairs: Sequence[CellPair]) -> AurocDifference:
    """Return the mean over folds of the differences of AUROC, each the mean over seeds.

    Scores of different models are not on one scale, so folds are not pooled for an AUROC. Raises StudyError where a
    fold lacks a class.
    """
    (first, patients), (second, _) = (_mean_auroc(side) for side in sides(pairs))
    return auroc_difference(first, second, patients)


def _measure_auroc(own: Predictions) -> Measured:
    found = auroc_of(own.is_positive, with_both_classes(own, "an AUROC").probability)
    return Measured(value=found.value, influence=found.influence, weight=1.0)


def _auroc(cells: Sequence[Cell]) -> Estimate:
    found, patients = _mean_auroc(cells)
    return Estimate(value=found.value, interval=auroc_interval(found, patients))


def sensitivity_endpoint(specificity: float, margin: float) -> Endpoint:
    """Return the endpoint of the sensitivity at a specificity that the same images of the same cell have.

    It is a point of the ROC curve, as the AUROC is its area, and not the sensitivity at the variant's stored threshold:
    that threshold has another specificity on the test images of each variant, and would mix the two.
    """
    what = f"sensitivity at specificity {specificity:.2f}"

    def measure(own: Predictions) -> Measured:
        return sensitivity_at(specificity, own.is_positive, with_both_classes(own, f"a {what}").probability)

    return Endpoint(measure=measure, margin=margin, noun=what, is_share=True)


ENDPOINTS.add(
    ACCURACY,
    Endpoint(
        measure=lambda own: mean_of(own.correct.astype("float64")),
        margin=0.02,
        noun=ACCURACY,
        is_share=True,
        exactly=_compare_accuracy,
        level=_accuracy,
    ),
)
ENDPOINTS.add(
    "auroc", Endpoint(measure=_measure_auroc, margin=0.02, noun=AUROC, difference=auroc_within_folds, level=_auroc)
)
ENDPOINTS.add(
    "brier",
    Endpoint(
        measure=lambda own: brier_of(own.is_positive, own.probability), margin=0.01, noun="Brier score", is_loss=True
    ),
)
ENDPOINTS.add("sensitivity-at-specificity-0.90", sensitivity_endpoint(0.90, margin=0.05))
