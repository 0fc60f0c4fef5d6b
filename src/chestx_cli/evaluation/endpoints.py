"""Endpoints: the measures that verdicts are based on, and the comparison of two variants over a study's cells."""

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
# Seed of the patient-level bootstrap for accuracy intervals; equals the commands' default seed.
DRAWS_SEED = 42


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Comparison of two classifiers on the same n images, before any correction for multiple comparisons.

    lost, won: discordant images, which only the first or only the second classifier gets right, summed over seeds.
    effect: the design effect of the difference. p_images: McNemar's exact p with images as the unit (equal to `p` for
    accuracy under several seeds). p: two-sided p for no difference, by `test`. p_margin: one-sided p for a loss of at
    least `margin`. measured: the difference if it is not (won - lost) / n, as for other endpoints or several seeds;
    interval and p values then refer to it.
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
        """Return the second classifier's endpoint minus the first's (accuracy unless `measured` is set)."""
        return (self.won - self.lost) / self.n if self.measured is None else self.measured


def compare(
    first_correct: npt.NDArray[np.bool_], second_correct: npt.NDArray[np.bool_], patients: Patients, margin: float
) -> Paired:
    """Compare two classifiers' accuracy on the same images [N] against a non-inferiority margin."""
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
    """The second variant's value minus the first's, with its interval and tests; larger is better."""

    @property
    def value(self) -> float:
        """Return the difference."""

    @property
    def p(self) -> float:
        """Return the two-sided p for no difference."""

    @property
    def method(self) -> str:
        """Return the name of the method behind the interval and p values."""

    def bounds(self) -> tuple[float, float]:
        """Return the 95 % interval of the difference."""

    def p_at_most(self, difference: float) -> float:
        """Return the one-sided p for the hypothesis that the true difference is at most `difference`."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A variant's endpoint value over all cells, in the endpoint's own direction, with its 95 % interval."""

    value: float
    interval: Interval


# Measures one variant on one cell's images; raises StudyError if the measure is undefined there.
Measure = Callable[[Predictions], Measured]
# Optional replacements for the influence-value method, for the difference and for one variant's value.
DifferenceOf = Callable[[Sequence[CellPair]], Difference]
ComparePaired = Callable[[Sequence[CellPair], float], "Paired"]
EstimateOf = Callable[[Sequence[Cell]], Estimate]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """The measure that verdicts are based on, with its non-inferiority margin.

    noun: its name in sentences. is_share: whether it is a share of images, with differences in percentage points.
    is_loss: whether smaller is better; differences are stated as gains, so larger is always better. least_change: the
    least that `Total.with_one_more` adds to the error of a difference; one image's change for a share. exactly,
    difference, level: specific methods that replace the general ones.
    """

    measure: Measure
    margin: float
    noun: str
    is_share: bool = False
    is_loss: bool = False
    least_change: float = 0.0
    exactly: ComparePaired | None = None
    difference: DifferenceOf | None = None
    level: EstimateOf | None = None

    def compare(self, pairs: Sequence[CellPair], margin: float) -> Paired:
        """Compare the second variant with the first over cells; a single split is one cell.

        Values are computed within folds; a patient counts once, by the mean over seeds. Raises StudyError if the
        endpoint is undefined on these images, IntegrityError if the cells are inconsistent.
        """
        if self.exactly:
            return self.exactly(pairs, margin)
        difference = self.difference(pairs) if self.difference else self.gain(pairs)
        low, high = difference.bounds()
        first, second = (stacked(side) for side in sides(pairs))
        patients = undrawn_patients(first.images.groups)
        changes = changes_of(first.correct, second.correct, patients)
        return Paired(
            n=len(set(first.images.ids.tolist())),
            lost=changes.lost,
            won=changes.won,
            effect=changes.design_effect,
            interval=Interval(low=low, high=high, method=difference.method),
            p_images=mcnemar_exact(changes.lost, changes.won),
            p=difference.p,
            test=difference.method,
            margin=margin,
            p_margin=difference.p_at_most(-margin),
            endpoint=ENDPOINTS.name_of(self),
            measured=difference.value,
            seeds=len({pair.seed for pair in pairs}),
        )

    def gain(self, pairs: Sequence[CellPair]) -> Total:
        """Return how much better the second variant is over cells, by the general method; a patient counts once."""
        first, second = (self.total(side) for side in sides(pairs))
        gain = first.less(second) if self.is_loss else second.less(first)
        least = (1.0 if self.is_share else self.least_change) * _folds_per_patient(pairs)
        return gain.with_one_more(least / gain.images)

    def total(self, cells: Sequence[Cell]) -> Total:
        """Return one variant's value over all cells, with each patient's first-order contribution to its error."""
        folds = by_fold(cells)
        return total_of(
            [[self.measure(predictions) for predictions in seeds] for seeds in folds],
            [seeds[0].images.groups for seeds in folds],
        )

    def estimate(self, cells: Sequence[Cell]) -> Estimate:
        """Return one variant's value over all cells: the mean over seeds within each fold, then over folds."""
        if self.level:
            return self.level(cells)
        total = self.total(cells)
        if self.is_share:
            return Estimate(value=total.value, interval=total.share_interval())
        return Estimate(value=total.value, interval=total.loss_interval() if self.is_loss else total.interval)

    def change(self, difference: float, interval: tuple[float, float]) -> str:
        """Return a difference with its 95 % interval as text."""
        if self.is_share:
            low, high = (f"{100 * end:+.1f}" for end in interval)
            return f"{100 * difference:+.1f} points of {self.noun}, 95 % CI {low} to {high}"
        gain = f"gain in {self.noun} {difference:+.3f}" if self.is_loss else f"{difference:+.3f} of {self.noun}"
        return f"{gain}, 95 % CI {interval[0]:+.3f} to {interval[1]:+.3f}"

    @property
    def change_title(self) -> str:
        """Return the column title for differences."""
        return f"{'Gain in' if self.is_loss else 'Difference of'} {self.noun}"

    @property
    def worse(self) -> str:
        """Return the phrase for a variant with a worse value."""
        return f"of higher {self.noun}" if self.is_loss else f"of lower {self.noun}"


def _folds_per_patient(pairs: Sequence[CellPair]) -> float:
    """Return in how many folds a patient is on average: 1 for test images; validation images of folds share them."""
    groups = [set(seeds[0].images.groups.tolist()) for seeds in by_fold(sides(pairs)[0])]
    return sum(len(one) for one in groups) / len(set().union(*groups))


ENDPOINTS: Registry[Endpoint] = Registry("endpoint", of=Endpoint)


def endpoint_of(name: str) -> Endpoint:
    """Return an endpoint by name; for a plugin that is no longer installed, a placeholder with only the name."""
    return ENDPOINTS[name] if name in ENDPOINTS else Endpoint(measure=_gone, margin=0.0, noun=name)


def _gone(_own: Predictions) -> Measured:
    raise StudyError("this endpoint's plugin is not installed", "install it again")


def with_both_classes(predictions: Predictions, noun: str) -> Predictions:
    """Return the predictions unchanged; raises StudyError if a class has no images."""
    if not 0 < int(predictions.is_positive.sum()) < len(predictions.is_positive):
        raise StudyError(f"{noun} needs images of both classes", "use --endpoint accuracy")
    return predictions


def _compare_accuracy(pairs: Sequence[CellPair], margin: float) -> Paired:
    """Compare accuracy by exact tests and Tango's interval; predictions under several seeds count as one patient's."""
    first, second = (stacked(side) for side in sides(pairs))
    paired = compare(first.correct, second.correct, undrawn_patients(first.images.groups), margin)
    seeds = len({pair.seed for pair in pairs})
    if seeds == 1:
        return paired
    images = len(set(first.images.ids.tolist()))
    return dataclasses.replace(paired, n=images, measured=paired.difference, p_images=paired.p, seeds=seeds)


def _accuracy(cells: Sequence[Cell]) -> Estimate:
    import numpy as np

    predictions = stacked(cells)
    patients = draw_patients(predictions.images.groups, np.random.default_rng(DRAWS_SEED))
    interval = proportion_interval(predictions.correct, np.ones(len(predictions.correct), dtype=bool), patients)
    if interval is None:
        raise ValueError("a cell has images")
    return Estimate(value=float(predictions.correct.mean()), interval=interval)


def _mean_auroc(cells: Sequence[Cell]) -> tuple[Auroc, Patients]:
    """Return the AUROC averaged over seeds, then over folds, with the patients."""
    fold_means = [
        mean_over_seeds(
            [
                auroc_of(predictions.is_positive, with_both_classes(predictions, "an AUROC").probability)
                for predictions in seeds
            ]
        )
        for seeds in by_fold(cells)
    ]
    return mean_over_folds(fold_means, [seeds[0].images.groups for seeds in by_fold(cells)])


def auroc_within_folds(pairs: Sequence[CellPair]) -> AurocDifference:
    """Return the difference in AUROC, averaged over seeds, then over folds.

    Scores of different models are on different scales, so each AUROC is computed within a fold. Raises StudyError if a
    fold lacks a class.
    """
    (first, patients), (second, _) = (_mean_auroc(side) for side in sides(pairs))
    return auroc_difference(first, second, patients)


def _measure_auroc(predictions: Predictions) -> Measured:
    area = auroc_of(predictions.is_positive, with_both_classes(predictions, "an AUROC").probability)
    return Measured(value=area.value, influence=area.influence, weight=1.0)


def _auroc(cells: Sequence[Cell]) -> Estimate:
    mean, patients = _mean_auroc(cells)
    return Estimate(value=mean.value, interval=auroc_interval(mean, patients))


def sensitivity_endpoint(specificity: float, margin: float) -> Endpoint:
    """Return the endpoint "sensitivity at a fixed specificity", both on the same images of one cell.

    It is a point of the ROC curve, not the sensitivity at the variant's stored threshold: at that threshold the test
    specificity differs between variants, which would confound the comparison.
    """
    noun = f"sensitivity at specificity {specificity:.2f}"

    def measure(predictions: Predictions) -> Measured:
        return sensitivity_at(
            specificity, predictions.is_positive, with_both_classes(predictions, f"a {noun}").probability
        )

    return Endpoint(measure=measure, margin=margin, noun=noun, is_share=True)


ENDPOINTS.add(
    ACCURACY,
    Endpoint(
        measure=lambda predictions: mean_of(predictions.correct.astype("float64")),
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
        measure=lambda predictions: brier_of(predictions.is_positive, predictions.probability),
        margin=0.01,
        noun="Brier score",
        is_loss=True,
        # The squared error of an image whose probability falls from certain to even.
        least_change=0.25,
    ),
)
ENDPOINTS.add("sensitivity-at-specificity-0.90", sensitivity_endpoint(0.90, margin=0.05))
