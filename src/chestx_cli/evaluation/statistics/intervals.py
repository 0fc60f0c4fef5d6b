"""Proportions and their intervals, for independent images and for images that share patients."""

from __future__ import annotations

import dataclasses
import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

ALPHA = 0.05
BOOTSTRAP_DRAWS = 2000
CHUNK = 100
LEAST_RATIOS = 3
WILSON, PATIENTS = "Wilson", "patients"
EXACT, EXACT_PATIENTS = "Clopper-Pearson", "Clopper-Pearson, patients"


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A 95 % interval and the name of its method."""

    low: float
    high: float
    method: str

    @property
    def bounds(self) -> tuple[float, float]:
        """Return the lower and the upper end."""
        return self.low, self.high


@dataclass(frozen=True, kw_only=True)
class Patients:
    """Each image's patient, and the patient-level bootstrap draws.

    code: patient number of each image [N]. drawn: how often each patient occurs in each draw [draws, patients].
    Patients are drawn rather than images because images of one patient are correlated (Davison and Hinkley, Bootstrap
    Methods and their Application, 1997, section 3.8).
    """

    code: npt.NDArray[np.int64]
    drawn: npt.NDArray[np.uint8]

    @property
    def n(self) -> int:
        """Return the number of patients."""
        return int(self.drawn.shape[1])

    def sums(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the sums of values [N] over each patient's images, [patients]."""
        import numpy as np

        return np.bincount(self.code, weights=values, minlength=self.n).astype(np.float64)

    def totals(self, *values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the total of each array of image values [N] in each bootstrap draw, [len(values), draws]."""
        import numpy as np

        per_patient = np.stack([self.sums(value) for value in values], axis=1)
        parts = [self.drawn[i : i + CHUNK].astype(np.float64) @ per_patient for i in range(0, len(self.drawn), CHUNK)]
        return np.concatenate(parts).T

    def images_per_patient(self, among: npt.NDArray[np.bool_]) -> float:
        """Return the mean number of selected images [N] per patient who has any; 1 if none is selected."""
        sizes = self.sums(among.astype("float64"))
        return float(sizes.sum() / (sizes > 0).sum()) if sizes.any() else 1.0


def undrawn_patients(groups: npt.NDArray[np.str_]) -> Patients:
    """Return the patients of images from their keys [N], without bootstrap draws."""
    import numpy as np
    import pandas as pd

    # Numbered in order of first occurrence, so that the draws do not depend on the keys.
    code, names = pd.factorize(np.asarray(groups, dtype=object))
    return Patients(code=code.astype(np.int64), drawn=np.zeros((0, len(names)), dtype=np.uint8))


def draw_patients(groups: npt.NDArray[np.str_], rng: np.random.Generator) -> Patients:
    """Return the patients of images from their keys [N], with 2,000 bootstrap draws."""
    import numpy as np

    patients = undrawn_patients(groups)
    n = patients.n
    drawn = np.stack([np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(BOOTSTRAP_DRAWS)])
    return dataclasses.replace(patients, drawn=drawn.astype(np.uint8))


def mean_ratio_interval(ratios: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of the geometric mean of ratios, one per repetition: Student's t on their logarithms.

    None for fewer than three ratios: the interval from two is uselessly wide. scipy's ttest_1samp gives the same
    interval (a test compares them), but warns of lost precision if all ratios are equal and takes 0.33 ms instead of
    0.08 ms.
    """
    from scipy.stats import t as student

    if len(ratios) < LEAST_RATIOS:
        return None
    logs = [math.log(ratio) for ratio in ratios]
    centre = statistics.fmean(logs)
    half = float(student.ppf(1 - ALPHA / 2, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(centre - half), math.exp(centre + half)


def wilson_interval(successes: float, n: float) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of a proportion (JASA 22, 1927); counts may be fractional (effective)."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, n, alpha=ALPHA, method="wilson")
    return float(low), float(high)


def proportion_interval(
    hit: npt.NDArray[np.bool_], among: npt.NDArray[np.bool_], patients: Patients
) -> Interval | None:
    """Return the 95 % interval of the share of `hit` [N] among the selected images `among` [N]; None without images.

    Wilson's interval, with n images if no patient has several of them, otherwise with n / design effect. The design
    effect is the ratio of the patient-level bootstrap variance to the binomial one, at least 1 (Rao and Scott,
    Biometrics 48, 1992; Dean and Pagano, J Surv Stat Methodol 3, 2015). If all images agree, the within-patient
    correlation cannot be estimated, and the interval is Clopper and Pearson's (Biometrika 26, 1934) with patients as
    the unit. The other intervals extend at least to its bound, so that a single differing image never makes an interval
    shorter.
    """
    n = int(among.sum())
    if not n:
        return None
    share = float((hit & among).sum()) / n
    alike = patients.images_per_patient(among)
    if alike == 1.0:
        low, high = wilson_interval(share * n, n)
        return Interval(low=low, high=high, method=WILSON)
    # At this share all patients agree with probability 2.5 % if the images of each patient are identical.
    nearest = (ALPHA / 2) ** (alike / n)
    if share in {0.0, 1.0}:
        ends = (nearest, 1.0) if share else (0.0, 1 - nearest)
        return Interval(low=ends[0], high=ends[1], method=EXACT_PATIENTS)
    effect = design_effect(hit & among, among, share * (1 - share), patients)
    low, high = wilson_interval(share * n / effect, n / effect)
    return Interval(low=min(low, nearest), high=max(high, 1 - nearest), method=PATIENTS)


def design_effect(
    values: npt.NDArray[np.generic], among: npt.NDArray[np.bool_], variance: float, patients: Patients
) -> float:
    """Return the design effect of a mean: the ratio of its variance to that of independent images.

    values: [N], used for the selected images `among` [N] and 0 elsewhere. variance: of one image's value. At least 1;
    if the variance is 0, the mean number of images per patient.
    """
    import numpy as np

    alike = patients.images_per_patient(among)
    if alike == 1.0:
        return 1.0
    if variance <= 0:
        return alike
    total, n = patients.totals(values.astype(np.float64), among.astype(np.float64))
    means = total[n > 0] / n[n > 0]
    # Bessel's correction: the bootstrap variance is (n - 1) / n of the unbiased one.
    inflation = patients.n / max(1, patients.n - 1)
    return max(1.0, float(means.var()) * inflation * int(among.sum()) / variance)


def percentile_interval(draws: npt.NDArray[np.float64]) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of a statistic from its bootstrap draws [B]; None if all are equal."""
    import numpy as np

    low, high = np.percentile(draws, [50 * ALPHA, 100 - 50 * ALPHA])
    return (float(low), float(high)) if low < high else None


def share(hit: npt.NDArray[np.bool_], among: npt.NDArray[np.bool_]) -> float | None:
    """Return the share of `hit` [N] among the selected images `among` [N]; None if none is selected."""
    return float((hit & among).sum() / among.sum()) if among.any() else None


def bounds(interval: Interval | None) -> tuple[float, float] | None:
    """Return both ends of an interval; None for None."""
    return interval.bounds if interval else None


def within(patients: Patients, among: npt.NDArray[np.bool_]) -> Patients:
    """Return the patients of the selected images `among` [N], with the same bootstrap draws."""
    import numpy as np

    kept, code = np.unique(patients.code[among], return_inverse=True)
    return Patients(code=code.astype(np.int64), drawn=patients.drawn[:, kept])
