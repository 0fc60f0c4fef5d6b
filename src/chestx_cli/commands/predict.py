"""`chestx predict`: new images by the variant that was decided on, or by a bundle."""

from __future__ import annotations

import functools
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from chestx_cli.core.command import Run, stage
from chestx_cli.core.errors import DataError, UsageError, again
from chestx_cli.core.options import Opt
from chestx_cli.core.printable import printable
from chestx_cli.core.shared_options import Force, ShowPaths, StudyDir, Threads
from chestx_cli.data.images.decoding import decode_grey
from chestx_cli.data.likeness.rule import unlike_note
from chestx_cli.data.sources.unlabelled import NewImage, NewImages, find_new_images
from chestx_cli.inference.predictions_file import open_predictions, record_file
from chestx_cli.inference.predictor import Predictor, Tally, predictor_of_bundle, predictor_of_variant
from chestx_cli.records.prediction import PredictionRow, PredictRecord
from chestx_cli.records.variant import BASELINE, FIXED
from chestx_cli.reporting.prediction_answer import SHOWN_PREDICTIONS, of_predictions
from chestx_cli.store.directory import Study, open_study
from chestx_cli.store.documents import write_record
from chestx_cli.store.lineage import uses_models

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from PIL.Image import Image

    from chestx_cli.data.images.decoding import FileFacts
    from chestx_cli.inference.runtimes import Compute
    from chestx_cli.records.preprocessing import Preprocessing

# As many predictions are kept for the record where no file takes them.
MAX_KEPT = 100_000


@stage(
    examples=(
        "chestx predict film.png",
        "chestx predict inbox/ --csv predictions.csv",
        "chestx predict inbox/ --variant static-int8 --json",
    ),
    after="export",
    answer=of_predictions,
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
    show_paths: ShowPaths = False,
    threads: Threads = None,
    force: Force = False,
) -> PredictRecord:
    """Predict new images: research only, no diagnosis.

    The probability is that of the class named in its heading, after the temperature. An image is called that class
    where it reaches the threshold that chestx evaluate froze. The variant is the one that the stored results say to
    ship, or else the baseline.

    Images found in folders and tables are named by ids unless --show-paths. The CSV file has the path of every image,
    so keep it with the images; a row is there as soon as the image is predicted. The same command adds the images that
    are not in it yet, and the counts are of the whole file. An image that cannot be read is a row with the reason; the
    exit code is then 1.
    """
    if variant is not None and bundle is not None:
        raise UsageError("--variant and --bundle exclude each other", "name one of them")
    if force and csv is None:
        raise UsageError("--force replaces a file of predictions", "name it with --csv, or leave it out")
    predictor, because, caveats = _of_bundle(run, bundle) if bundle else _of_study(run, open_study(study), variant)
    with run.reporter.progress("Looking for images", None):
        found = find_new_images(images, leave_out=study)
    if csv is None and len(found) > MAX_KEPT:
        raise DataError(
            f"{len(found):,} images are more than the {MAX_KEPT:,} that are kept in memory",
            f"{again('--csv predictions.csv')} writes each as it is predicted",
        )
    tally = Tally(keep=None if csv is None else SHOWN_PREDICTIONS)
    if csv is None:
        for rows in _predicted(run, predictor, found, threads):
            tally.add(*rows)
    else:
        empty = predictor.record(run.stamp(), Tally(), because=because, csv=csv.name)
        with open_predictions(csv, empty, tally, force=force) as file:
            for rows in _predicted(run, predictor, found, threads, known=file.paths, first=tally.images):
                file.append(rows)
                tally.add(*rows)
    record = predictor.record(run.stamp(), tally, because=because, csv=None if csv is None else csv.name)
    record = record.replace(notes=(*caveats, *_notes(predictor, found, tally)))
    if csv is not None:
        write_record(record_file(csv), record.replace(rows=()))
    typed = {printable(str(image)) for image in images}
    shown = (row if show_paths or row.path in typed else replace(row, path=None) for row in record.rows)
    return record.replace(rows=tuple(shown))


def _of_bundle(run: Run, folder: Path) -> tuple[Predictor, str, tuple[str, ...]]:
    predictor = predictor_of_bundle(folder)
    run.uses(f"bundle/{Path(predictor.file.path).name}", predictor.sha256)
    return predictor, "it is the bundle's", ()


def _of_study(run: Run, target: Study, name: str | None) -> tuple[Predictor, str, tuple[str, ...]]:
    """Return the variant that is named, or else decided on, why it is taken, and the caveats of its training."""
    name, because = (name, "it was named") if name is not None else _decided_on(target)
    record = target.read_variant(name)
    predictor = predictor_of_variant(run, target, record)
    run.uses(f"{record.name}/{record.model_file}", record.model_sha256)
    return predictor, because, uses_models(run, target, [record])


def _decided_on(target: Study) -> tuple[str, str]:
    """Return the variant to ship by the stored results, or else the baseline, and why."""
    if not any(target.root.glob("variants/[!.]*/evaluation.test.json")):
        # Where there is no variant either, the split's absence, or its folds, are what is to be mended.
        if not (target.variant(BASELINE) / "variant.json").exists():
            target.read_split_record()
        return BASELINE, "no variant is evaluated yet"
    # Imported here, since a variant that is named needs none of it.
    from chestx_cli.evaluation.results import BENCHMARKS, EVALUATIONS, VARIANTS, read_study
    from chestx_cli.reporting.decision import decide

    stored = read_study(target, parts=(VARIANTS, EVALUATIONS, BENCHMARKS), check_models=False)
    decision = decide(stored.variants)
    return decision.ship or BASELINE, decision.sentence.removesuffix(".")


def _predicted(
    run: Run,
    predictor: Predictor,
    found: NewImages,
    threads: int | None,
    *,
    known: Collection[str] = (),
    first: int = 0,
) -> Iterator[list[PredictionRow]]:
    """Yield the rows of images a batch at a time, without those of `known` paths; ids are counted from `first` on."""
    waiting: deque[str] = deque()

    @functools.cache
    def opened() -> Compute:
        # Only where there is an image for it, and while the first are decoded.
        return predictor.open(threads)

    def decode(image: NewImage, preprocessing: Preprocessing) -> tuple[Image, FileFacts]:
        return decode_grey(image.path, preprocessing)

    title = f"Predicting {len(found):,} image{'' if len(found) == 1 else 's'} with {predictor.name}"
    with run.reporter.progress(title, len(found)) as advance:

        def wanted() -> Iterator[NewImage]:
            for image in found:
                path = printable(str(image.path))
                if path in known:
                    advance()
                else:
                    waiting.append(path)
                    yield image

        for predictions in predictor.predictions(lambda inputs: opened()(inputs), wanted(), decode):
            yield [predictor.row_of(one, first + one.row, waiting.popleft()) for one in predictions]
            advance(len(predictions))


def _notes(predictor: Predictor, found: NewImages, tally: Tally) -> tuple[str, ...]:
    notes = []
    if (row := tally.first_unreadable) is not None:
        notes.append(f"{tally.unreadable:,} cannot be read, such as {row.image_id} ({row.problem}).")
    if (row := tally.first_unlike) is not None:
        notes.append(unlike_note(tally.unlike, row.image_id, row.unlike_training or ""))
    if predictor.why_not_compared:
        notes.append(f"Not compared with the training images: {predictor.why_not_compared}.")
    if predictor.threshold_rule == FIXED:
        notes.append(f'The threshold is {FIXED} and not chosen on validation images: "chestx evaluate" can choose one.')
    if found.left_out:
        kinds = ", ".join(f"{n:,} × {kind}" for kind, n in found.left_out.most_common())
        notes.append(f"Left out of folders: {kinds}.")
    return tuple(notes)
