"""Prediction in Python: `chestx.open_study("study").variant("static-int8").predict(images)`."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from chestx_cli.core.command import Run
from chestx_cli.core.errors import UsageError
from chestx_cli.core.printable import printable
from chestx_cli.core.progress import current_reporter
from chestx_cli.data.images.decoding import decode_grey, decode_pixels
from chestx_cli.data.sources.unlabelled import find_new_images
from chestx_cli.inference.predictor import Predictor, Tally, predictor_of_variant
from chestx_cli.store import directory
from chestx_cli.store.caveats import stamps_of
from chestx_cli.store.lineage import stored_caveats

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

    from chestx_cli.data.images.decoding import FileFacts
    from chestx_cli.inference.runtimes import Compute
    from chestx_cli.records.prediction import PredictRecord
    from chestx_cli.records.preprocessing import Preprocessing

    # A file, folder or table of images, or decoded grey pixels [H, W].
    Source = str | os.PathLike[str] | npt.NDArray[np.uint8 | np.uint16]

T = TypeVar("T")
ARRAYS_HELP = "give grey pixels [height, width] or [images, height, width] of type uint8 or uint16"


class OpenedModel:
    """A model opened on the CPU; it stays in memory for further predictions.

    Predictions are those of `chestx predict`. Research software. Not a medical device.
    """

    def __init__(self, predictor: Predictor, root: Path, threads: int | None, caveats: tuple[str, ...]) -> None:
        self._predictor = predictor
        self._caveats = caveats
        self._root = root
        self._threads = threads

    def __repr__(self) -> str:
        return f"<model {self.name} under {self._predictor.runtime}: {self.positive} from {self.threshold:.4g} on>"

    @property
    def name(self) -> str:
        """The variant's name."""
        return self._predictor.name

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of both classes."""
        return self._predictor.classes

    @property
    def positive(self) -> str:
        """The class whose probability is predicted."""
        return self._predictor.positive

    @property
    def threshold(self) -> float:
        """The lowest probability (0 to 1) at which an image is called positive."""
        return self._predictor.threshold

    @property
    def image_size_px(self) -> int:
        """The side of the network's square input in pixels; images of any size are resized to it."""
        return self._predictor.preprocessing.image_size_px

    @functools.cached_property
    def _compute(self) -> Compute:
        return self._predictor.open(self._threads)

    def predict(self, images: Source | Sequence[Source], *, allow_lateral: bool = False) -> PredictRecord:
        """Return the probability of the positive class for each image, and its class at the threshold.

        Parameters
        ----------
        images : path, array, or list of these
            The path of an image file, a folder, or a CSV file with a column `path`; or grey pixels as stored in the
            file (0 is black) of type uint8 (0 to 255) or uint16 (0 to 2**bits - 1 of the study's images):
            one image [height, width] or several of one size [images, height, width]. Paths and arrays cannot be mixed.
        allow_lateral : bool
            Whether to take DICOM images that say they are lateral views, as `--allow-lateral` does. The window or table
            that DICOM is shown by belongs to the variant.

        Returns
        -------
        PredictRecord
            Its `rows` are in the order of the images: `row.probability[positive]` is 0 to 1, `row.decision` the name of
            a class, `row.distance_to_threshold` the probability minus the threshold. If an image cannot be read, these
            are None and `row.problem` has the reason. `row.unlike_training` names the signs by which an image looks
            unlike the training images, `row.doubts` the doubts that its file raises; both are None without any.
            `record.notes` are the data warnings of the model, such as UNPROVEN.
            `record.to_frame()` returns a pandas frame.

        Raises
        ------
        ChestxError
            For a path that does not exist, an array of another shape or type, or a model file that was modified.
        """
        items: Sequence[Any] = images if isinstance(images, (list, tuple)) else [images]
        if not any(_is_array(item) for item in items):
            return self._predict_files([Path(item) for item in items], allow_lateral=allow_lateral)
        return self._predict_arrays([image for item in items for image in _greys(item)])

    def _predict_files(self, paths: Sequence[Path], *, allow_lateral: bool) -> PredictRecord:
        new_images = find_new_images(paths, leave_out=self._root)
        shown = [printable(str(one.path)) for one in new_images]
        images = (image.place for image in new_images)
        return self._predict(images, decode_grey, shown, allow_lateral=allow_lateral)

    def _predict_arrays(self, greys: Sequence[npt.NDArray[np.uint8 | np.uint16]]) -> PredictRecord:
        return self._predict(greys, decode_pixels, [None] * len(greys))

    def _predict(
        self,
        images: Iterable[T],
        decode: Callable[[T, Preprocessing], tuple[Image, FileFacts]],
        paths: Sequence[str | None],
        *,
        allow_lateral: bool = False,
    ) -> PredictRecord:
        preprocessing = self._predictor.preprocessing.for_new_images(allow_lateral=allow_lateral)
        predictor = replace(self._predictor, preprocessing=preprocessing)
        tally = Tally()
        run = Run(line="", command="chestx predict", options={}, reporter=current_reporter())
        run.uses(f"{self.name}/model", self._predictor.sha256)
        run.stamped(stamps_of(self._caveats))
        with run.reporter.progress(f"Predicting {len(paths):,} images with {self.name}", len(paths)) as advance:
            for batch in predictor.predictions(self._compute, images, decode):
                for prediction in batch:
                    tally.add(predictor.row_of(prediction, prediction.row, paths[prediction.row]))
                advance(len(batch))
        return predictor.record(run.stamp(), tally, because="named in Python").replace(notes=self._caveats)


class OpenedStudy:
    """A study directory, opened for prediction."""

    def __init__(self, root: Path) -> None:
        self._study = directory.open_study(root)

    def __repr__(self) -> str:
        return f"<study of {len(self.variants)} variants: {', '.join(self.variants)}>"

    @property
    def variants(self) -> tuple[str, ...]:
        """The names of the variants, the baseline first."""
        return self._study.variant_names()

    def variant(self, name: str, *, threads: int | None = None) -> OpenedModel:
        """Return a variant for prediction after checking its file; `threads` is None for all processors.

        Raises ChestxError if there is no such variant or its file was modified.
        """
        run = Run(line="", command="chestx predict", options={}, reporter=current_reporter())
        record = self._study.read_variant(name)
        predictor = predictor_of_variant(run, self._study, record)
        return OpenedModel(predictor, self._study.root, threads, stored_caveats(self._study, [record]))


def open_study(study: str | os.PathLike[str] = "study") -> OpenedStudy:
    """Open the study in a folder for prediction.

    `chestx.open_study("study").variant("static-int8").predict("film.png")`. `chestx.evaluate()` recommends a variant.
    """
    return OpenedStudy(Path(study))


def _is_array(item: object) -> bool:
    return hasattr(item, "dtype") and hasattr(item, "shape")


def _greys(array: Source) -> list[npt.NDArray[np.uint8 | np.uint16]]:
    """Split an array into images [H, W]; raises UsageError for other shapes or types, and for a path."""
    import numpy as np

    if not _is_array(array):
        raise UsageError("paths and arrays are mixed", "predict the files first, then the arrays")
    pixels = np.asarray(array)
    if pixels.dtype not in (np.uint8, np.uint16) or pixels.ndim not in (2, 3):
        raise UsageError(f"an array of type {pixels.dtype} and shape {pixels.shape} holds no grey images", ARRAYS_HELP)
    return [np.ascontiguousarray(image) for image in (pixels[None] if pixels.ndim == 2 else pixels)]
