"""`chestx export`: a variant as a bundle that a device without chestx can run."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from chestx_cli.core.command import Run, stage
from chestx_cli.core.errors import DataError, ExportError, IntegrityError, StudyError, again, quoted
from chestx_cli.core.files import folder_appears_whole
from chestx_cli.core.options import Opt
from chestx_cli.core.shared_options import Force, Seed, StudyDir
from chestx_cli.data.images.formats.refusals import UnreadableImageError
from chestx_cli.data.images.places import place_of, read_image, suffix_of
from chestx_cli.evaluation.reading import read_study
from chestx_cli.evaluation.results import BENCHMARKS, EVALUATIONS, VARIANTS
from chestx_cli.inference.bundles import (
    DESCRIPTION_FILE,
    DEVICE_RUNTIME,
    SCHEMA,
    SCRIPT,
    TOLERANCE,
    Bundle,
    bundle_of,
    bundle_predictions,
    content_of,
    write_bundle,
)
from chestx_cli.inference.onnx_export import CHECKED_IMAGES, model_for
from chestx_cli.inference.prediction import predict_split
from chestx_cli.records.answers import INFERIOR
from chestx_cli.records.commands import ExportRecord
from chestx_cli.records.variant import VariantRecord
from chestx_cli.reporting import answers
from chestx_cli.store.caveats import uses_split
from chestx_cli.store.directory import Study, open_study
from chestx_cli.store.lineage import uses_models
from chestx_cli.store.locks import hold

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from chestx_cli.evaluation.results import VariantResults
    from chestx_cli.store.split import Split


@stage(examples=("chestx export static-int8 --out bundle/",), after="benchmark", answer=answers.of_export)
def export(
    run: Run,
    variant: Annotated[str, Opt(help="Variant to export.", argument=True, metavar="VARIANT")],
    *,
    study: StudyDir = Path("study"),
    out: Annotated[Path, Opt(help="Folder to make the bundle in.", identity=False)] = Path("bundle"),
    anyway: Annotated[bool, Opt(help="Export even if inferior on test images.")] = False,
    zstd: Annotated[bool, Opt(help="Compress the model; the device needs zstandard.")] = False,
    seed: Seed = 42,
    force: Force = False,
) -> ExportRecord:
    """Bundle a variant for a device: model, labels, one script.

    The script predicts and times the model with numpy, Pillow and onnxruntime alone; with --zstd the model is
    compressed, and is unpacked in memory when the script runs. It is run once here, on validation
    images drawn by the seed, and must give the variant's probabilities. The bundle holds hashes, no paths and no
    images. Its model.json has the test result and the model's stamps, such as UNPROVEN. A variant that is inferior on
    the test images is exported only with --anyway.
    """
    target = open_study(study)
    split = target.read_split()
    record = target.read_usable_variant(variant, split)
    uses_split(run, target, split)
    caveats = uses_models(run, target, [record])
    run.uses(f"{record.name}/{record.model_file}", record.model_sha256)
    # Read with all other variants: the verdict is corrected for their number.
    stored = read_study(target, parts=(VARIANTS, EVALUATIONS, BENCHMARKS), check_models=False, needed=(record.name,))
    for sentence in stored.damaged:
        run.warn(sentence)
    results = next(entry for entry in stored.variants if entry.name == record.name)
    comparison = results.comparison
    if comparison and comparison.word == INFERIOR and not anyway:
        raise StudyError(
            f"{record.name} is {comparison.verdict}",
            f"export another variant, or use {again('--anyway')}",
        )
    # The name, not the path: exports into one folder must exclude each other wherever they are started.
    hold(run, target.root, f"bundle {out.resolve().name}")
    model = Path(model_for(run, target, split, record, "onnx").path)
    bundle = bundle_of(target, record, model, results.evaluation, zstd=zstd)
    if not force and _has_scripts_of(out, bundle):
        run.reporter.note(f"already done: {out} holds this bundle; it is checked again")
        checked, difference = _require_same_predictions(run, target, split, record, out, seed)
    else:
        _require_free(out, force=force)
        with folder_appears_whole(out) as folder:
            write_bundle(folder, bundle)
            checked, difference = _require_same_predictions(run, target, split, record, folder, seed)
    return ExportRecord(
        stamp=run.stamp(),
        notes=(
            _test_note(record.name, results),
            f"On the device: python3 {quoted(f'{out.name}/{SCRIPT.name}')} predict IMAGE... (or benchmark). It needs "
            f"numpy, Pillow and onnxruntime{', before Python 3.14 zstandard' if zstd else ''}, and reads DICOM with "
            "pydicom, too.",
            *caveats,
        ),
        variant=record.name,
        bundle=str(out),
        files=tuple(bundle.files()),
        model_bytes=bundle.description.model.size_bytes,
        bundle_bytes=bundle.size_bytes,
        added_memory_mb=_added_memory_mb(results),
        model_sha256=bundle.description.model.sha256,
        checked_images=checked,
        max_probability_difference=difference,
    )


def _added_memory_mb(results: VariantResults) -> float | None:
    """Return the memory that opening and running the model adds to that of the runtime, as benchmarked; None if not."""
    costs = (cost for benchmark in results.benchmarks for cost in benchmark.cost_rows)
    return next((cost.added_memory_mb for cost in costs if cost.runtime == DEVICE_RUNTIME), None)


def _test_note(name: str, results: VariantResults) -> str:
    if results.row is None:
        return f'{name} was not evaluated on the test images as it is now: run "chestx evaluate {name}" first.'
    return (
        f"{name} is {results.row.verdict}." if results.comparison else f"{name} has no comparison: it is the baseline."
    )


def _has_scripts_of(out: Path, bundle: Bundle) -> bool:
    """Return whether a folder has this bundle's files; the bundle's script itself checks the hash of the model."""
    files = {name: content for name, content in bundle.files().items() if name != bundle.description.model.file}
    try:
        return all((out / name).read_bytes() == content_of(file) for name, file in files.items())
    except OSError:
        return False


def _require_free(out: Path, *, force: bool) -> None:
    """Raise StudyError if `out` exists and must not be replaced; only bundles may be replaced, and with `force`."""
    if not out.exists():
        return
    try:
        is_bundle = json.loads((out / DESCRIPTION_FILE).read_text(encoding="utf-8"))["schema"] == SCHEMA
    except (OSError, ValueError, KeyError, TypeError):
        is_bundle = False
    if not is_bundle:
        raise StudyError(f"{out} exists and is no bundle", "choose another folder with --out DIR")
    if not force:
        raise StudyError(f"{out} holds a bundle already", "choose another folder with --out DIR, or use --force")


def _require_same_predictions(
    run: Run, target: Study, split: Split, record: VariantRecord, folder: Path, seed: int
) -> tuple[int, float]:
    """Run a bundle on image files of the validation split; return their number and the largest difference.

    Raises ExportError if a probability differs from the variant's own, under PyTorch for torch variants.
    """
    import numpy as np

    validation = split.indices("val")
    drawn = np.random.default_rng(seed).permutation(len(validation))[:CHECKED_IMAGES]
    rows = validation[np.sort(drawn)]
    expected = predict_split(target, split, record, rows, run.reporter, threads=None)[:, split.positive]
    waited_for = run.reporter.progress(f"Running the bundle on {len(rows)} images", None)
    with waited_for, tempfile.TemporaryDirectory() as copied:
        files = _copies(split, rows, Path(copied))
        from_bundle = np.array(bundle_predictions(folder, files))
    difference = float(np.abs(from_bundle - expected).max())
    if not difference <= TOLERANCE:
        raise ExportError(
            f"the bundle of {record.name} differs from the variant by {difference:.2g} in a probability, more than "
            f"{TOLERANCE:g}",
            "please report this with the output of --debug",
        )
    return len(rows), difference


def _copies(split: Split, rows: npt.NDArray[np.int64], folder: Path) -> list[Path]:
    """Return copies of images, named by id."""
    files = []
    for row in rows:
        place, image_id = place_of(split, int(row)), str(split.ids[row])
        try:
            content = read_image(place)
        except UnreadableImageError as error:
            raise DataError(f"cannot read image {image_id}: {error.fact}", "restore it") from error
        if hashlib.sha256(content).hexdigest() != split.image_sha256[row]:
            raise IntegrityError(
                f"image {image_id} was changed since the split was made",
                'restore it, or run "chestx split DATA --force" again',
            )
        files.append(folder / f"{image_id}{suffix_of(place)}")
        files[-1].write_bytes(content)
    return files
