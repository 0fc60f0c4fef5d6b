"""The quality of a model on validation images, pooled over folds."""

from __future__ import annotations

import numpy as np
import pytest

from chestx_cli.compression.validation_quality import quality_of
from chestx_cli.evaluation.endpoints import ENDPOINTS
from chestx_cli.evaluation.predictions import CellPair, Images, Predictions, predictions_of
from chestx_cli.evaluation.statistics.intervals import Patients, draw_patients

N = 60


def predicted(probability: np.ndarray, fold: str = "") -> Predictions:
    images = Images(
        ids=np.array([f"{fold}/{index}" for index in range(N)]),
        groups=np.array([f"patient {index}" for index in range(N)]),
        is_positive=(np.arange(N) % 2).astype(np.int64),
    )
    return predictions_of(images, probability, 0.5)


def pair(fold: str = "", *, flipped: int = 0, shifted: int = 0) -> CellPair:
    """Return a parent that is always right, and a model with false negatives, far off or only across the threshold."""
    rng = np.random.default_rng(3)
    good = np.where(np.arange(N) % 2, 0.9, 0.1) + rng.uniform(-0.05, 0.05, N)
    other = good.copy()
    positives = np.arange(1, N, 2)
    other[positives[:flipped]] = rng.uniform(0.01, 0.02, flipped)
    other[positives[flipped : flipped + shifted]] = rng.uniform(0.4, 0.45, shifted)
    return CellPair(first=predicted(good, fold), second=predicted(other, fold), fold=fold)


def patients(pairs: list[CellPair]) -> Patients:
    groups = np.concatenate([one.first.images.groups for one in pairs])
    return draw_patients(groups, np.random.default_rng(0))


def test_without_an_endpoint_the_larger_drop_counts() -> None:
    ranked, shifted = pair(flipped=3), pair(shifted=3)
    # Images below all negatives: each costs more of AUROC than of accuracy.
    worse = quality_of([ranked], patients([ranked]), None)
    assert worse.dropped == "AUROC"
    assert worse.drop == pytest.approx(0.1)
    # The ranking is unchanged, but the threshold is crossed.
    crossed = quality_of([shifted], patients([shifted]), None)
    assert crossed.dropped == "accuracy"
    assert crossed.drop == pytest.approx(0.05)
    assert quality_of([shifted], patients([shifted]), "auroc").drop == 0
    assert quality_of([ranked], patients([ranked]), "accuracy").drop == pytest.approx(0.05)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(("flipped", "shifted"), [(0, 4), (2, 0), (0, 0)], ids=["shifted", "flipped", "equal"])
def test_folds_of_the_same_images_are_no_more_evidence(flipped: int, shifted: int, endpoint: str) -> None:
    """The interval over folds is that of one fold: neither narrower nor, without a difference, of no width."""
    once, *twice = (pair(fold, flipped=flipped, shifted=shifted) for fold in ("", "fold-1", "fold-2"))
    alone, pooled = (quality_of(pairs, patients(pairs), endpoint) for pairs in ([once], twice))
    assert alone.drop_interval is not None
    assert pooled.drop_interval is not None
    assert pooled.drop == pytest.approx(alone.drop)
    assert pooled.drop_interval == pytest.approx(alone.drop_interval, abs=0.012)
    low, high = pooled.drop_interval
    assert low < pooled.drop < high


@pytest.mark.parametrize("endpoint", [None, *ENDPOINTS])
def test_the_drop_is_within_its_interval(endpoint: str | None) -> None:
    for pairs in ([pair(flipped=2, shifted=3)], [pair("fold-1", flipped=2), pair("fold-2", shifted=3)]):
        quality = quality_of(pairs, patients(pairs), endpoint)
        assert quality.drop_interval is not None
        low, high = quality.drop_interval
        assert low < quality.drop < high


def test_a_significant_decrease_is_named() -> None:
    pairs = [pair(flipped=12)]
    assert quality_of(pairs, patients(pairs), None).fell == ("sensitivity", "AUROC")
    # The endpoint has its own limit.
    assert quality_of(pairs, patients(pairs), "auroc").fell == ("sensitivity",)
    in_folds = [pair("fold-1", flipped=12), pair("fold-2", flipped=12)]
    assert quality_of(in_folds, patients(in_folds), None).fell == ("sensitivity", "AUROC")


def test_folds_are_pooled_and_the_same_patients_count_once() -> None:
    alone = [pair(flipped=4)]
    twice = [pair("fold-1", flipped=4), pair("fold-2", flipped=4)]
    one, two = (quality_of(pairs, patients(pairs), "accuracy") for pairs in (alone, twice))
    assert (two.accuracy, two.drop, two.loss) == pytest.approx((one.accuracy, one.drop, one.loss))
    mixed = [pair("fold-1", flipped=4), pair("fold-2")]
    assert quality_of(mixed, patients(mixed), "accuracy").drop == pytest.approx(one.drop / 2)
