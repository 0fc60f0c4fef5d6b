"""`chestx predict`: predictions of new images by the variant to ship, or by a bundle."""

from __future__ import annotations

import functools
import hashlib
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from chestx_cli.core.command import Run, stage
from chestx_cli.core.errors import DataError, UsageError, again
from chestx_cli.core.options import Opt
from chestx_cli.core.printable import counted, printable
from chestx_cli.core.shared_options import AllowLateral, Force, ShowPaths, StudyDir, Threads
from chestx_cli.data.images.decoding import at_network_size, decode_grey
from chestx_cli.data.images.formats.refusals import UnreadableImageError
from chestx_cli.data.images.places import read_image
from chestx_cli.data.likeness.rule import unlike_note
from chestx_cli.data.sources.unlabelled import NewImage, NewImages, find_new_images
from chestx_cli.inference.pacs.results import ArchiveResults, archive_results
from chestx_cli.inference.pictures.heatmaps import open_heatmaps
from chestx_cli.inference.predictions_file import open_predictions, record_file
from chestx_cli.inference.predictor import Predictor, Tally, predictor_of_bundle, predictor_of_variant
from chestx_cli.records.prediction import PredictionRow, PredictRecord
from chestx_cli.records.variant import BASELINE, FIXED
from chestx_cli.reporting.prediction_answer import SHOWN_PREDICTIONS, of_predictions
from chestx_cli.store.caveats import stamps_of
from chestx_cli.store.directory import Study, open_study
from chestx_cli.store.documents import write_record
from chestx_cli.store.lineage import uses_models

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

    from chestx_cli.core.record import Options
    from chestx_cli.data.images.decoding import FileFacts
    from chestx_cli.data.images.places import Place
    from chestx_cli.inference.pictures.heatmaps import Heatmaps, Overlay
    from chestx_cli.inference.predictions_file import PredictionsFile
    from chestx_cli.inference.predictor import Prediction
    from chestx_cli.inference.runtimes import Compute
    from chestx_cli.records.preprocessing import Preprocessing

# Limit for predictions kept in the record if they are not written to a file.
MAX_KEPT = 100_000
WITHOUT_CAVEATS = (
    "This bundle was made by an earlier chestx and does not say whether its model was UNPROVEN or STALE: export the "
    "variant again."
)


def _require_compatible(options: Options) -> None:
    if options["variant"] is not None and options["bundle"] is not None:
        raise UsageError("--variant and --bundle exclude each other", "name one of them", option="variant")
    if options["force"] and options["csv"] is None:
        raise UsageError(
            "--force replaces a file of predictions", "name it with --csv, or leave it out", option="force"
        )
    if options["heatmap"] is not None and options["bundle"] is not None:
        raise UsageError("--heatmap needs torch weights, and a bundle has none", "predict with the study's variant")


@stage(
    examples=(
        "chestx predict film.png",
        "chestx predict inbox/ --csv predictions.csv",
        "chestx predict inbox/ --variant static-int8 --json",
    ),
    after="export",
    answer=of_predictions,
    check=_require_compatible,
)
def predict(
    run: Run,
    images: Annotated[
        tuple[Path, ...],
        Opt(help="Image files, folders, tables with a column path.", argument=True, metavar="IMAGE", identity=False),
    ],
    *,
    study: StudyDir = Path("study"),
    variant: Annotated[str | None, Opt(help="Variant to predict with; the one to ship by default.")] = None,
    bundle: Annotated[Path | None, Opt(help="Predict with a bundle instead.", metavar="DIR", identity=False)] = None,
    csv: Annotated[
        Path | None, Opt(help="Append every prediction to this file.", metavar="FILE", identity=False)
    ] = None,
    allow_lateral: AllowLateral = False,
    dicom_out: Annotated[
        Path | None, Opt(help="Write a DICOM report and picture of each DICOM image.", metavar="DIR", identity=False)
    ] = None,
    heatmap: Annotated[
        Path | None, Opt(help="Draw a Grad-CAM of each image into this folder.", metavar="DIR", identity=False)
    ] = None,
    show_paths: ShowPaths = False,
    threads: Threads = None,
    force: Force = False,
) -> PredictRecord:
    """Predict new images: research only, no diagnosis.

    The probability is that of the class in its heading, after temperature scaling. An image is assigned to that class
    if the probability reaches the variant's threshold. The stored results choose the variant; if none is to be shipped,
    the baseline is used.

    Images of folders and tables are named by ids unless --show-paths. The CSV file has the path of every image, so keep
    it with the images. Rows are appended as images are predicted. Run the same command again to add images that are not
    in the file yet; the counts refer to the whole file. An image that cannot be read is a row with the reason; the
    exit code is then 1.

    --dicom-out writes for each image that is DICOM a structured report and a secondary capture for an archive (PACS).
    They are filed with the patient's study, so they name the patient.
    """
    for flag, folder in (("--heatmap", heatmap), ("--dicom-out", dicom_out)):
        if folder is not None:
            _require_place(flag, folder, images)
    predictor, because, caveats = _of_bundle(run, bundle) if bundle else _of_study(run, open_study(study), variant)
    predictor = replace(predictor, preprocessing=predictor.preprocessing.for_new_images(allow_lateral=allow_lateral))
    heatmaps = None
    if heatmap is not None:
        with run.reporter.progress("Opening the network of the heatmaps", None):
            heatmaps = open_heatmaps(heatmap, Study(study), Study(study).read_variant(predictor.name), predictor)
    pictures = Pictures(heatmaps=heatmaps, results=None if dicom_out is None else archive_results(dicom_out, predictor))
    with run.reporter.progress("Looking for images", None):
        new_images = find_new_images(images, leave_out=study)
    if csv is None and len(new_images) > MAX_KEPT:
        raise DataError(
            f"{len(new_images):,} images are more than the {MAX_KEPT:,} that are kept in memory",
            f"{again('--csv predictions.csv')} writes each as it is predicted",
        )
    tally = Tally(keep=None if csv is None else SHOWN_PREDICTIONS)
    if csv is None:
        for rows in _predicted(run, predictor, new_images, threads, pictures):
            tally.add(*rows)
    else:
        empty = predictor.record(run.stamp(), Tally(), because=because, csv=csv.name)
        with open_predictions(csv, empty, tally, force=force) as file:
            first = tally.images
            for rows in _predicted(run, predictor, new_images, threads, pictures, earlier=file, first=first):
                file.append(rows)
                tally.add(*rows)
    record = predictor.record(run.stamp(), tally, because=because, csv=None if csv is None else csv.name)
    record = record.replace(notes=(*caveats, *_notes(predictor, new_images, tally), *pictures.notes))
    if csv is not None:
        write_record(record_file(csv), record.replace(rows=()))
    typed = {printable(str(image)) for image in images}
    shown = (row if show_paths or row.path in typed else replace(row, path=None) for row in record.rows)
    return record.replace(rows=tuple(shown))


@dataclass(kw_only=True)
class Pictures:
    """What is written of each image besides its row: a heatmap, and results for an archive.

    `gone` counts images of an earlier run that have no heatmap and can no longer be read.
    """

    heatmaps: Heatmaps | None
    results: ArchiveResults | None
    gone: int = 0

    @property
    def are_wanted(self) -> bool:
        """Return whether anything is to be written."""
        return self.heatmaps is not None or self.results is not None

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what was written, and of how many images it was not."""
        of_heatmaps = () if self.heatmaps is None else (self.heatmaps.note,)
        of_results = () if self.results is None else self.results.notes
        gone = (f"Without a heatmap: {self.gone:,} × predicted earlier and no longer readable.",) if self.gone else ()
        return (*of_heatmaps, *gone, *of_results)

    def made(self, prediction: Prediction, row: PredictionRow, place: Place) -> PredictionRow:
        """Write them and return the row, with the file of its heatmap; an image that cannot be read has none."""
        maps, pixels, overlay = self.heatmaps, prediction.pixels, None
        if maps is not None and pixels is not None:
            overlay = maps.overlay_of(pixels)
            row = replace(row, heatmap=maps.draw(pixels, overlay, row, prediction.sha256))
        if self.results is not None:
            self.results.add(row, place, None if overlay is None else lambda: overlay)
        return row

    def complete(self, row: PredictionRow, place: Place, preprocessing: Preprocessing) -> None:
        """Write what is missing for an image that an earlier run has predicted."""
        maps = None if row.decision is None else self.heatmaps

        @functools.cache
        def pixels() -> npt.NDArray[np.uint8]:
            return at_network_size(decode_grey(place, preprocessing)[0], preprocessing)

        @functools.cache
        def overlay() -> Overlay:
            assert maps is not None  # noqa: S101 - called only then
            return maps.overlay_of(pixels())

        try:
            if (
                maps is not None
                and not maps.file_of(row, sha256 := hashlib.sha256(read_image(place)).hexdigest()).exists()
            ):
                maps.draw(pixels(), overlay(), row, sha256)
        except UnreadableImageError:
            self.gone += 1
        if self.results is not None:
            self.results.add(row, place, None if maps is None else overlay)


def _of_bundle(run: Run, folder: Path) -> tuple[Predictor, str, tuple[str, ...]]:
    predictor, caveats = predictor_of_bundle(folder)
    run.uses(f"bundle/{Path(predictor.file.path).name}", predictor.sha256)
    run.stamped(stamps_of(caveats or ()))
    return predictor, "it is the bundle's", (WITHOUT_CAVEATS,) if caveats is None else caveats


def _of_study(run: Run, target: Study, name: str | None) -> tuple[Predictor, str, tuple[str, ...]]:
    """Return the predictor of the named variant, or of the one to ship, the reason, and the caveats of its training."""
    name, because = (name, "named by --variant") if name is not None else _decided_on(target)
    record = target.read_variant(name)
    predictor = predictor_of_variant(run, target, record)
    run.uses(f"{record.name}/{record.model_file}", record.model_sha256)
    return predictor, because, uses_models(run, target, [record])


def _decided_on(target: Study) -> tuple[str, str]:
    """Return the variant to ship by the stored results, or the baseline if there is none, and the reason."""
    if not any(target.root.glob("variants/[!.]*/evaluation.test.json")):
        # Without any variant, report a missing split, or folds, first.
        if not (target.variant(BASELINE) / "variant.json").exists():
            target.read_split_record()
        return BASELINE, "no variant is evaluated yet"
    # Imported here: a named variant needs none of it.
    from chestx_cli.evaluation.reading import read_study
    from chestx_cli.evaluation.results import BENCHMARKS, EVALUATIONS, VARIANTS
    from chestx_cli.reporting.decision import decide

    stored = read_study(target, parts=(VARIANTS, EVALUATIONS, BENCHMARKS), check_models=False)
    decision = decide(stored.variants)
    return decision.ship or BASELINE, decision.sentence.removesuffix(".")


def _predicted(
    run: Run,
    predictor: Predictor,
    new_images: NewImages,
    threads: int | None,
    pictures: Pictures,
    *,
    earlier: PredictionsFile | None = None,
    first: int = 0,
) -> Iterator[list[PredictionRow]]:
    """Yield rows of predictions, batch by batch, of images that are not in an `earlier` file; ids count from `first`.

    Pictures are written before, so that every row of a file of predictions has them. The earlier run may not have been
    asked for them: what is missing is written now.
    """
    waiting: deque[NewImage] = deque()

    @functools.cache
    def opened() -> Compute:
        # Opened only if there is an image, and while the first images are decoded.
        return predictor.open(threads)

    def decode(image: NewImage, preprocessing: Preprocessing) -> tuple[Image, FileFacts]:
        return decode_grey(image.place, preprocessing)

    title = f"Predicting {counted(len(new_images), 'image')} with {predictor.name}"
    with run.reporter.progress(title, len(new_images)) as advance:

        def wanted() -> Iterator[NewImage]:
            for image in new_images:
                path = printable(str(image.path))
                if earlier is not None and path in earlier.lines:
                    if pictures.are_wanted:
                        pictures.complete(earlier.earlier_row(path), image.place, predictor.preprocessing)
                    advance()
                else:
                    waiting.append(image)
                    yield image

        for predictions in predictor.predictions(lambda inputs: opened()(inputs), wanted(), decode):
            rows = []
            for one in predictions:
                image = waiting.popleft()
                row = predictor.row_of(one, first + one.row, printable(str(image.path)))
                rows.append(pictures.made(one, row, image.place))
            yield rows
            advance(len(predictions))


def _require_place(flag: str, folder: Path, images: Sequence[Path]) -> None:
    """Raise UsageError for a folder whose files would be found as new images, or that a file stands in the way of."""
    place = folder.resolve()
    there = next(above for above in (place, *place.parents) if above.exists())
    if not there.is_dir():
        which = "is a file" if there == place else f"is below {there.name}, a file"
        raise UsageError(f"{flag} {folder} {which}, where a folder is needed", f"name a folder with {flag}")
    for named in (image.resolve() for image in images if image.is_dir()):
        if place.is_relative_to(named):
            raise UsageError(
                f"{flag} {folder} lies among the images, and its files would be taken for images the next time",
                "name a folder outside of them",
            )


def _notes(predictor: Predictor, new_images: NewImages, tally: Tally) -> tuple[str, ...]:
    notes = []
    if (row := tally.first_unreadable) is not None:
        notes.append(f"{tally.unreadable:,} cannot be read, such as {row.image_id} ({row.problem}).")
    notes += [f"{n:,} × {doubts}." for doubts, n in tally.doubted.most_common()]
    if (row := tally.first_unlike) is not None:
        notes.append(unlike_note(tally.unlike, row.image_id, row.unlike_training or ""))
    if predictor.why_not_compared:
        notes.append(f"Not compared with the training images: {predictor.why_not_compared}.")
    if predictor.threshold_rule == FIXED:
        notes.append(
            f"The threshold is {FIXED} and not chosen on validation images: "
            '"chestx evaluate --operating-point youden" chooses one.'
        )
    if new_images.left_out:
        kinds = ", ".join(f"{n:,} × {kind}" for kind, n in new_images.left_out.most_common())
        notes.append(f"Left out of folders: {kinds}.")
    return tuple(notes)
