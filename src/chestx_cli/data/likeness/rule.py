"""Detection of images that are unlike the training images: statistics, limits, and signs of difference.

Three signs concern the file (colour, shape, size) and two its thumbnail. The layout is the distribution of dark and
bright areas, independent of brightness and contrast; its statistic is the residual after projection on the principal
axes of the training images (Jackson and Mudholkar, Technometrics 21, 1979, 341). The greys are seven quantiles and the
local contrast; their statistic is the Mahalanobis distance. The limits of both come from images that were not used for
the statistics.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from chestx_cli.core.printable import counted
from chestx_cli.data.images.films import AIR_UNDECIDED, air_of
from chestx_cli.records.training_images import LAYOUT_PX

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from chestx_cli.data.images.decoding import FileFacts
    from chestx_cli.records.training_images import TrainingImagesRecord

    Array = npt.NDArray[np.float64]
    Thumbs = npt.NDArray[np.uint8]

# Minimum number of images for statistics.
FEWEST_IMAGES = 20
# More axes would also explain foreign images: of 12 CT slices 32 axes detect 72 %, 8 axes 92 %.
AXES = 8
FOLDS = 5
# Limits are computed on logarithms, which are about normal, and never below a quantile of the held-out images.
STANDARD_DEVIATIONS, WITHIN = 3.0, 0.99
SHRINKAGE = 0.05
QUANTILES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
# Grey images saved in colour differ by compression artefacts; up to this mean difference of channels they are grey.
GREY_COLOUR = 8
# Largest ratio to the most coloured, most elongated or smallest training image.
COLOUR_FACTOR, ASPECT_FACTOR, SIZE_FACTOR = 2.0, 2.0, 2.0


class Sign(StrEnum):
    """A way in which an image differs from the training images."""

    COLOUR = "colour"
    SHAPE = "shape"
    SIZE = "size"
    GREYS = "greys"
    LAYOUT = "layout"
    INVERTED = "inverted"


MEANINGS = {
    Sign.COLOUR: "in colour",
    Sign.SHAPE: f"more than {ASPECT_FACTOR:g} times as elongated as any of them",
    Sign.SIZE: f"less than 1/{SIZE_FACTOR:g} of the smallest of them",
    Sign.GREYS: "other brightness or contrast",
    Sign.LAYOUT: "dark and bright in other places",
    Sign.INVERTED: "as a negative of them",
}


def unlike_note(images: int, first: str, signs: str) -> str:
    """Return the warning about images unlike the training images; `signs` are those of the first of them."""
    named = "; ".join(f"{sign}: {MEANINGS[Sign(sign)]}" for sign in signs.split(", "))
    return (
        f"Unlike the training images: {counted(images, 'image')}, such as {first} ({named}). The model's test results "
        "do not cover such images."
    )


@dataclass(frozen=True, kw_only=True)
class Layouts:
    """Mean [1024] and principal axes [k, 1024] of layouts."""

    mean: npt.NDArray[np.floating]
    axes: npt.NDArray[np.floating]

    def unexplained(self, layouts: Array) -> Array:
        """Return the logarithm of the squared distance of layouts [n, 1024] from the axes' subspace."""
        import numpy as np

        centred = layouts - self.mean
        rest = (centred**2).sum(axis=1) - ((centred @ self.axes.T) ** 2).sum(axis=1)
        return np.asarray(np.log(np.maximum(rest, 1e-6)))


@dataclass(frozen=True, kw_only=True)
class Greys:
    """Mean [9] and inverse covariance [9, 9] of greys."""

    mean: npt.NDArray[np.floating]
    precision: npt.NDArray[np.floating]

    def distance(self, greys: Array) -> Array:
        """Return the logarithm of the squared Mahalanobis distance of greys [n, 9]."""
        import numpy as np

        centred = greys - self.mean
        return np.asarray(np.log(np.maximum(((centred @ self.precision) * centred).sum(axis=1), 1e-6)))


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Facts of a sample of the training files; None if no file could be read."""

    colour: int | None
    aspects: tuple[float, float] | None
    shorter_px: int | None


def sampled_of(facts: Sequence[FileFacts]) -> Sampled:
    """Return the facts from which the limits of colour, shape and size are computed."""
    if not facts:
        return Sampled(colour=None, aspects=None, shorter_px=None)
    aspects = [one.width_px / one.height_px for one in facts]
    return Sampled(
        colour=max(one.colour for one in facts),
        aspects=(min(aspects), max(aspects)),
        shorter_px=min(min(one.width_px, one.height_px) for one in facts),
    )


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Statistics of thumbnails and their limits, and the number of held-out images beyond a limit.

    `air` is the usual sign of the background, as `air_of` returns it.
    """

    layouts: Layouts
    greys: Greys
    layout_limit: float
    greys_limit: float
    air: int
    held_out: int
    held_out_unlike: int


def fit(train: Thumbs, groups: npt.NDArray[np.str_], held_out: Thumbs) -> Fitted:
    """Return the statistics of training thumbnails [n, 64, 64], with limits from images not used for the statistics.

    These are the `held_out` thumbnails [m, 64, 64] and, by cross-validation over patients (`groups` [n]) with five
    folds, the training images. n must be at least FEWEST_IMAGES.
    """
    import numpy as np

    own, greys = layout_of(train), greys_of(train)
    layouts, spread = _layouts(own), _greys(greys)
    # Images of one patient are similar, so they are held out together.
    _, patient = np.unique(groups, return_inverse=True)
    fold = np.random.default_rng(0).permutation(patient.max() + 1)[patient] % FOLDS
    unexplained = [layouts.unexplained(layout_of(held_out))]
    distances = [spread.distance(greys_of(held_out))]
    for left_out in (fold == number for number in range(FOLDS)):
        if left_out.any() and (~left_out).sum() > AXES:
            unexplained.append(_layouts(own[~left_out]).unexplained(own[left_out]))
            distances.append(_greys(greys[~left_out]).distance(greys[left_out]))
    of_layouts, of_greys = np.concatenate(unexplained), np.concatenate(distances)
    layout_limit, greys_limit = _limit(of_layouts), _limit(of_greys)
    airs = [air_of(thumb) for thumb in train]
    return Fitted(
        layouts=layouts,
        greys=spread,
        layout_limit=layout_limit,
        greys_limit=greys_limit,
        air=int(np.sign(sum(airs))) if 2 * abs(sum(airs)) > len(airs) else AIR_UNDECIDED,
        held_out=len(of_layouts),
        held_out_unlike=int(((of_layouts > layout_limit) | (of_greys > greys_limit)).sum()),
    )


def layout_of(thumbs: Thumbs) -> Array:
    """Return the layouts [n, 1024] of thumbnails [n, 64, 64]: means of 2×2 pixels, of mean 0 and deviation 1."""
    import numpy as np

    step = thumbs.shape[1] // LAYOUT_PX
    blocks = thumbs.reshape(len(thumbs), LAYOUT_PX, step, LAYOUT_PX, step).mean(axis=(2, 4), dtype=np.float64)
    flat = blocks.reshape(len(thumbs), LAYOUT_PX * LAYOUT_PX)
    flat = flat - flat.mean(axis=1, keepdims=True)
    # A flat image has no layout: its noise must not be amplified.
    return np.asarray(flat / np.maximum(flat.std(axis=1, keepdims=True), 1.0))


def greys_of(thumbs: Thumbs) -> Array:
    """Return the greys [n, 9] of thumbnails [n, 64, 64]: quantiles, and mean differences of neighbours, logarithmic."""
    import numpy as np

    wide = thumbs.astype(np.int16)
    in_order = np.sort(thumbs.reshape(len(thumbs), thumbs.shape[1] * thumbs.shape[2]), axis=1)
    at = [int(share * (in_order.shape[1] - 1)) for share in QUANTILES]
    contrasts = [np.log1p(np.abs(np.diff(wide, axis=axis)).mean(axis=(1, 2))) for axis in (1, 2)]
    return np.column_stack([in_order[:, at] / 255, *contrasts])


def _layouts(layouts: Array) -> Layouts:
    import numpy as np

    mean = layouts.mean(axis=0)
    centred = layouts - mean
    # From the Gram matrix, which is smaller than the covariance: a tenth of the time of an SVD.
    _, vectors = np.linalg.eigh(centred @ centred.T)
    axes = vectors[:, ::-1][:, :AXES].T @ centred
    return Layouts(mean=mean, axes=axes / np.maximum(np.linalg.norm(axes, axis=1, keepdims=True), 1e-9))


def _greys(greys: Array) -> Greys:
    import numpy as np

    covariance = np.cov(greys.T)
    shared = SHRINKAGE * np.trace(covariance) / len(covariance)
    shrunk = (1 - SHRINKAGE) * covariance + max(shared, 1e-6) * np.eye(len(covariance))
    return Greys(mean=greys.mean(axis=0), precision=np.linalg.inv(shrunk))


def _limit(values: Array) -> float:
    import numpy as np

    return float(max(values.mean() + STANDARD_DEVIATIONS * values.std(), np.quantile(values, WITHIN)))


class TrainingImages:
    """The stored statistics, and the comparison of images with them."""

    def __init__(self, record: TrainingImagesRecord) -> None:
        import numpy as np

        self._record = record
        self._layouts = Layouts(mean=record.mean, axes=record.axes)
        self._greys = Greys(mean=np.array(record.greys_mean), precision=np.array(record.greys_precision))

    def signs(self, facts: Sequence[FileFacts], thumbs: Thumbs) -> list[tuple[Sign, ...]]:
        """Return the signs of each image that is unlike the training images; `thumbs` are [n, 64, 64]."""
        other_layout = self._layouts.unexplained(layout_of(thumbs)) > self._record.layout_limit
        other_greys = self._greys.distance(greys_of(thumbs)) > self._record.greys_limit
        found = []
        for fact, thumb, layout, greys in zip(facts, thumbs, other_layout, other_greys, strict=True):
            signs = self._of_file(fact)
            signs += [Sign.GREYS] if greys else []
            signs += [Sign.LAYOUT] if layout else []
            if layout and self._record.air != AIR_UNDECIDED and air_of(thumb) == -self._record.air:
                signs.append(Sign.INVERTED)
            found.append(tuple(signs))
        return found

    def _of_file(self, fact: FileFacts) -> list[Sign]:
        record, signs = self._record, []
        if record.colour is not None and fact.colour > max(GREY_COLOUR, COLOUR_FACTOR * record.colour):
            signs.append(Sign.COLOUR)
        if record.aspects is not None:
            aspect, (least, largest) = fact.width_px / fact.height_px, record.aspects
            if aspect < min(least, 1 / largest) / ASPECT_FACTOR or aspect > max(largest, 1 / least) * ASPECT_FACTOR:
                signs.append(Sign.SHAPE)
        if record.shorter_px is not None:
            smallest = min(record.shorter_px, record.preprocessing.image_size_px)
            if min(fact.width_px, fact.height_px) * SIZE_FACTOR < smallest:
                signs.append(Sign.SIZE)
        return signs
