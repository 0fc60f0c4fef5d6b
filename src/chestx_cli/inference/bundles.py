"""Bundles: a model with everything needed to predict with it and to time it on a device.

A bundle has four files: the ONNX model, its description `model.json`, a script that does not need chestx, and the
module that reads images. It contains hashes of the study's files but no paths, images or patient names.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import chestx_cli
from chestx_cli.core.errors import ExportError, IntegrityError
from chestx_cli.core.files import read_json, sha256_of, storage_error, write_atomic
from chestx_cli.core.record import NOT_A_DEVICE, jsonable
from chestx_cli.inference.device.image_reader import READER_FILE, image_reader
from chestx_cli.inference.speedups import cost_row, variant_sizes
from chestx_cli.networks.weights.safe_readers import MAX_MODEL_BYTES
from chestx_cli.networks.weights.zstd import SUFFIX, compressed
from chestx_cli.records.benchmark import CostRow
from chestx_cli.records.preprocessing import PREPROCESSING_VERSION, READ_PREPROCESSING_VERSIONS, Preprocessing
from chestx_cli.records.variant import OperatingPoint, require_decision
from chestx_cli.store.documents import damage_of, other_version
from chestx_cli.store.lineage import ancestry, stored_caveats, with_ancestors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chestx_cli.records.evaluation import EvaluationRecord
    from chestx_cli.records.variant import VariantRecord
    from chestx_cli.store.directory import Study

SCRIPT = Path(__file__).parent / "device" / "chestx_bundle.py"
MODEL_FILE, DESCRIPTION_FILE = "model.onnx", "model.json"
SCHEMA = "chestx.bundle/1"
DEVICE_RUNTIME = "onnxruntime"
# Of the preprocessing; their defaults are for new models. The others are absent from older bundles.
ALWAYS_STATED = ("version", "image_size_px", "mean", "std")
COPY_AGAIN = "copy the whole bundle again"
# Tolerance of a probability: export and fusion reorder FP32 sums, and a logit may differ by 1e-4 of the largest.
TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class BundledModel:
    """The model file of a bundle; hash and size are those of the ONNX file also where the bundle has it compressed."""

    file: str
    sha256: str
    size_bytes: int

    def __post_init__(self) -> None:
        """Raise ValueError for another name than a bundle's model has, or an impossible size."""
        if self.file not in (MODEL_FILE, f"{MODEL_FILE}{SUFFIX}"):
            raise ValueError(f"a model file of the name {self.file!r}")
        if not 0 < self.size_bytes <= MAX_MODEL_BYTES:
            raise ValueError(f"a model of {self.size_bytes} bytes")


@dataclass(frozen=True, kw_only=True)
class Ancestor:
    """A variant in the lineage of the bundled one, with its model file's hash and size."""

    variant: str
    method: str
    model_sha256: str
    model_bytes: int


@dataclass(frozen=True, kw_only=True)
class TestResult:
    """A variant's test results in its study, with its verdict against the baseline; None for the baseline itself."""

    images: int
    patients: int
    correct: int
    accuracy_interval: tuple[float, float]
    sensitivity: float | None
    sensitivity_interval: tuple[float, float] | None
    specificity: float | None
    specificity_interval: tuple[float, float] | None
    auroc: float | None
    auroc_interval: tuple[float, float] | None
    verdict: str | None
    explanation: str


@dataclass(frozen=True, kw_only=True)
class BundleDescription:
    """`model.json`: identity, input, output and origin of the model."""

    notice: str = NOT_A_DEVICE
    made_by: str = f"chestx {chestx_cli.__version__}"
    variant: str
    method: str
    backbone: str
    labels: tuple[str, ...]
    positive: str
    threshold: float
    operating_point: OperatingPoint | None
    temperature: float
    preprocessing: Preprocessing
    target_cpu: str | None
    model: BundledModel
    # The variant first, then its parent, and so on up to the variant without a parent.
    lineage: tuple[Ancestor, ...]
    split_sha256: str
    calibration_sha256: str | None
    # The variant's test results; None if its current weights were not evaluated.
    test: TestResult | None
    # Copied by the script into its benchmark record, with memory values filled in on the device.
    cost: CostRow
    # The data warnings of the model, each sentence with its stamp; None in older bundles, which do not record them.
    caveats: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for invalid values."""
        require_decision(self.labels, self.positive, self.threshold, self.temperature)

    def to_json(self) -> str:
        """Return the description as a JSON document that begins with its schema."""
        return json.dumps({"schema": SCHEMA, **jsonable(self)}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle's description and its ONNX file, or the file's content compressed."""

    description: BundleDescription
    model: Path | bytes

    @property
    def size_bytes(self) -> int:
        """Return the size of all its files."""
        return sum(len(file) if isinstance(file, bytes) else file.stat().st_size for file in self.files().values())

    def files(self) -> dict[str, Path | bytes]:
        """Return the files of the bundle by name, as a path or as content."""
        return {
            self.description.model.file: self.model,
            DESCRIPTION_FILE: self.description.to_json().encode(),
            SCRIPT.name: SCRIPT,
            READER_FILE: image_reader(),
        }


def bundle_of(
    study: Study, record: VariantRecord, model: Path, evaluation: EvaluationRecord | None, *, zstd: bool = False
) -> Bundle:
    """Return the bundle of a variant from its ONNX file, to be compressed or not, and test results.

    The lineage ends at a parent that has been replaced since. Raises StorageError, and UsageError without a library
    that compresses.
    """
    try:
        packed = compressed(model.read_bytes()) if zstd else None
        described = BundledModel(
            file=f"{MODEL_FILE}{SUFFIX}" if zstd else MODEL_FILE,
            sha256=sha256_of(model),
            size_bytes=model.stat().st_size,
        )
        carried_bytes = described.size_bytes if packed is None else len(packed)
    except OSError as error:
        raise storage_error(error, model) from error
    description = BundleDescription(
        variant=record.name,
        method=record.method,
        backbone=record.backbone,
        labels=record.classes,
        positive=record.positive,
        threshold=record.threshold,
        operating_point=record.operating_point,
        temperature=record.temperature,
        preprocessing=record.preprocessing,
        target_cpu=record.quantization.target_cpu if record.quantization else None,
        model=described,
        lineage=tuple(
            Ancestor(
                variant=variant.name,
                method=variant.method,
                model_sha256=variant.model_sha256,
                model_bytes=variant.model_bytes,
            )
            for variant in ancestry(record, with_ancestors(study, [record]))
        ),
        split_sha256=record.split_sha256,
        calibration_sha256=record.calibration_sha256,
        test=_test_result(evaluation) if evaluation else None,
        cost=cost_row(record, variant_sizes(study, record), DEVICE_RUNTIME, [], received_bytes(carried_bytes)),
        caveats=stored_caveats(study, [record]),
    )
    return Bundle(description=description, model=model if packed is None else packed)


def received_bytes(model_bytes: int) -> int:
    """Return the size of a bundle with a model of this size, but for the few kilobytes of its description."""
    return model_bytes + SCRIPT.stat().st_size + len(image_reader())


def read_bundle(folder: Path) -> BundleDescription:
    """Read a bundle's description; raises IntegrityError if it is missing, damaged or of another version."""
    from pydantic import TypeAdapter, ValidationError

    path = folder / DESCRIPTION_FILE
    try:
        document = read_json(path)
    except FileNotFoundError as error:
        raise IntegrityError(
            f"{folder} is no bundle: it has no {DESCRIPTION_FILE}", '"chestx export VARIANT" makes one'
        ) from error
    except OSError as error:
        raise storage_error(error, path) from error
    except ValueError as error:
        raise IntegrityError(f"{path} is not JSON: {error}", COPY_AGAIN) from error
    if not isinstance(document, dict) or document.pop("schema", None) != SCHEMA:
        raise IntegrityError(f"{path} is no {SCHEMA} description", COPY_AGAIN)
    try:
        # As JSON, of which the strict rules take lists for tuples; no text is taken for a number, as in the script.
        content = json.dumps(document)
        description: BundleDescription = TypeAdapter(BundleDescription).validate_json(content, strict=True)
    except ValidationError as error:
        raise IntegrityError(f"{path} is damaged{damage_of(error)}", COPY_AGAIN) from error
    if missing := [name for name in ALWAYS_STATED if name not in document["preprocessing"]]:
        raise IntegrityError(f"{path} is damaged at preprocessing.{missing[0]}: it is missing", COPY_AGAIN)
    if (version := description.preprocessing.version) not in READ_PREPROCESSING_VERSIONS:
        raise other_version(str(path), f"preprocessing {version}", newer=version > PREPROCESSING_VERSION)
    return description


def _test_result(evaluation: EvaluationRecord) -> TestResult:
    row, rates, comparison = evaluation.rows[0], evaluation.operating_rows[0], evaluation.comparison
    return TestResult(
        images=evaluation.images,
        patients=evaluation.patients,
        correct=row.correct,
        accuracy_interval=row.accuracy_interval,
        sensitivity=rates.sensitivity,
        sensitivity_interval=rates.sensitivity_interval,
        specificity=rates.specificity,
        specificity_interval=rates.specificity_interval,
        auroc=row.auroc,
        auroc_interval=row.auroc_interval,
        verdict=comparison.short if comparison else None,
        explanation=row.verdict,
    )


def write_bundle(folder: Path, bundle: Bundle) -> None:
    """Write the files of a bundle into a folder; raises StorageError."""
    for name, content in bundle.files().items():
        write_atomic(folder / name, content_of(content))


def content_of(file: Path | bytes) -> bytes:
    """Return the content of one of a bundle's files."""
    return file if isinstance(file, bytes) else file.read_bytes()


def bundle_predictions(folder: Path, images: Sequence[Path]) -> list[float]:
    """Return the probability of the positive class from the bundle's script, one per image file.

    Raises ExportError if the script fails.
    """
    arguments = [sys.executable, str(folder / SCRIPT.name), "predict", *map(str, images)]
    finished = subprocess.run(arguments, capture_output=True, text=True, encoding="utf-8", check=False)
    if finished.returncode:
        reason = finished.stderr.strip() or f"it ended with code {finished.returncode}"
        raise ExportError(f"the bundle cannot predict: {reason}", "please report this with the output of --debug")
    return [float(row["probability"]) for row in json.loads(finished.stdout)["images"]]
