"""The split, or the folds, that a search works on: each with the parent model and the short fits made from it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.compression.cost_probe import Prober
from chestx_cli.compression.pruning.channel_removal import Limits
from chestx_cli.compression.pruning.criteria import usual_criterion
from chestx_cli.compression.pruning.structured import Cutting
from chestx_cli.compression.short_fits import ShortFits
from chestx_cli.core.errors import StudyError
from chestx_cli.evaluation.predictions import CellPair, Predictions, images_of, predictions_of
from chestx_cli.evaluation.variant_tables import both_classes
from chestx_cli.inference.prediction import predict_split
from chestx_cli.networks.backbones import output_layer
from chestx_cli.networks.training_data import read_fit_data
from chestx_cli.networks.weights.serialization import load_network
from chestx_cli.records.split import VAL, FoldsRecord
from chestx_cli.store.directory import Study
from chestx_cli.store.documents import read_record
from chestx_cli.store.locks import hold
from chestx_cli.store.variants import open_parent

if TYPE_CHECKING:
    from chestx_cli.compression.pruning.allocation import Measured
    from chestx_cli.compression.pruning.methods import Structured
    from chestx_cli.compression.short_fits import Student
    from chestx_cli.core.command import Run
    from chestx_cli.records.sensitivity import GroupSensitivityRecord
    from chestx_cli.records.variant import VariantRecord
    from chestx_cli.store.split import Split


@dataclass(frozen=True, kw_only=True)
class Fold:
    """A split that a search uses, the only one or one of several folds, with the parent model and its predictions.

    `name` is empty for a single split.
    """

    name: str
    study: Study
    split: Split
    parent: VariantRecord
    reference: Predictions
    fits: ShortFits

    def guided_by(self, measured: Measured[GroupSensitivityRecord]) -> Fold:
        """Return the fold with the parent's structured sensitivity, by which networks can be guided."""
        return dataclasses.replace(self, fits=dataclasses.replace(self.fits, guide=measured))

    def own(self, predictions: Predictions) -> Predictions:
        """Return predictions with the fold in the ids: an image may be a validation image of several folds."""
        if not self.name:
            return predictions
        import numpy as np

        ids = np.char.add(f"{self.name}/", predictions.images.ids.astype(str))
        return dataclasses.replace(predictions, images=dataclasses.replace(predictions.images, ids=ids))

    def pair(self, predictions: Predictions) -> CellPair:
        """Return the pair of the parent's predictions and a model's."""
        return CellPair(first=self.own(self.reference), second=self.own(predictions), fold=self.name)


def open_folds(
    run: Run,
    target: Study,
    parent: str,
    recipe: Structured,
    students: dict[str, Student],
    *,
    threads: int,
    runtime: str,
    renews: bool,
) -> tuple[Fold, ...]:
    """Return the folds of a study, or its single split, each with its parent model.

    If it `renews`, what earlier searches have measured and fitted is not used. Raises StudyError for a fold without the
    parent, or without validation images of both classes.
    """
    if not target.folds_json.exists():
        cells = [("", target)]
    else:
        rows = read_record(FoldsRecord, target.folds_json).rows
        cells = [(row.study, Study(target.root / row.study)) for row in rows]
    folds = []
    for name, study in cells:
        inputs = dict(run.inputs)
        split, source = open_parent(run, study, parent)
        if name:
            # Files have the same names in all folds: the fold's name keeps them apart.
            run.inputs = inputs | {f"{name}/{key}": run.inputs[key] for key in ("split.csv", *_model_of(source))}
        hold(run, study.root, f"the compression of {parent}")
        reference = validation_of(run, study, split, source, threads)
        if not both_classes(reference):
            raise StudyError("the validation split lacks images of one class", "split again with a larger share of it")
        fits = _short_fits(run, study, split, source, recipe, students, threads=threads, runtime=runtime, renews=renews)
        folds.append(Fold(name=name, study=study, split=split, parent=source, reference=reference, fits=fits))
    return tuple(folds)


def _model_of(record: VariantRecord) -> tuple[str]:
    return (f"{record.name}/{record.model_file}",)


def _short_fits(
    run: Run,
    study: Study,
    split: Split,
    parent: VariantRecord,
    recipe: Structured,
    students: dict[str, Student],
    *,
    threads: int,
    runtime: str,
    renews: bool,
) -> ShortFits:
    network = load_network(study, parent)
    prober = Prober(
        network=network,
        backbone=parent.backbone,
        n_classes=len(parent.classes),
        data=read_fit_data(study, split, parent.preprocessing, run.reporter),
        folder=study.cache,
        threads=threads,
        runtime=runtime,
        renews=renews,
    )
    cutting = Cutting(
        criterion=usual_criterion(network),
        limits=Limits(round_to=recipe.round_to, floor=recipe.floor),
        kept_layer=output_layer(network),
        device="cpu",
        precision="fp32",
        seed=recipe.seed,
    )
    return ShortFits(
        parent=parent,
        prober=prober,
        cutting=cutting,
        students=students,
        lr=recipe.lr,
        batch_size=recipe.batch_size,
        results=study.cache,
        states=study.root / "checkpoints" / f".short-fits-{parent.name}",
        reporter=run.reporter,
        renews=renews,
    )


def validation_of(run: Run, study: Study, split: Split, record: VariantRecord, threads: int) -> Predictions:
    """Return a variant's predictions for the validation images."""
    rows = split.indices(VAL)
    probability = predict_split(study, split, record, rows, run.reporter, threads=threads)[:, split.positive]
    return predictions_of(images_of(split, rows), probability, record.threshold)
