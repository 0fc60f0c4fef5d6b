"""Short fits of networks that compete in a search: continued from rung to rung, and none of them stored as a variant.

The short fit of a pruned network begins as `chestx prune` does with the same options, and that of a student as `chestx
distill`. Its learning rate stays constant, since how many rungs will follow is not known.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from chestx_cli.compression.pruning.allocation import by_sensitivity
from chestx_cli.compression.pruning.channel_removal import ShareError
from chestx_cli.compression.pruning.structured import prune_channels
from chestx_cli.compression.pruning.width import at_width, require_width
from chestx_cli.compression.search import GUIDED
from chestx_cli.core.errors import ChestxError, IntegrityError, UsageError, WeightsError, again
from chestx_cli.core.files import identified, read_json, write_atomic
from chestx_cli.core.options import parse_share
from chestx_cli.core.shared_options import TEACHER_WEIGHT, TEMPERATURE
from chestx_cli.evaluation.predictions import images_of, predictions_of
from chestx_cli.evaluation.statistics.calibration import fit_temperature
from chestx_cli.evaluation.statistics.operating_points import choose_threshold, parse_rule
from chestx_cli.evaluation.statistics.outcome import log_odds_of, sigmoid
from chestx_cli.networks.backbones import BACKBONES, build_classifier, head_of
from chestx_cli.networks.devices import move_back, move_to, reproducible
from chestx_cli.networks.distillation import distilling
from chestx_cli.networks.recalibration import reestimate_batchnorm
from chestx_cli.networks.training import fit, recipe_of
from chestx_cli.networks.training_data import positive_probability, predict_logits
from chestx_cli.networks.weights.pretrained import IMAGENET, NONE, find_weights, load_weights, place_by_hand
from chestx_cli.records.split import VAL
from chestx_cli.store.checkpoints import Checkpoints

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

    from chestx_cli.compression.cost_probe import Prober
    from chestx_cli.compression.pruning.allocation import Measured
    from chestx_cli.compression.pruning.structured import Allocator, Cutting
    from chestx_cli.compression.pruning.unstructured import Finetune
    from chestx_cli.compression.search import ChannelChoice, Network
    from chestx_cli.core.progress import Reporter
    from chestx_cli.evaluation.predictions import Predictions
    from chestx_cli.networks.recipe import Recipe
    from chestx_cli.records.sensitivity import GroupSensitivityRecord
    from chestx_cli.records.variant import EpochRow, VariantRecord

STAGE = "short fit"


@dataclass(frozen=True, kw_only=True)
class Student:
    """A backbone that learns from the parent: its initial weights, and their file if they have one.

    width: share of the channels that each of its layers has.
    """

    backbone: str
    weights: str
    file: Path | None
    width: float = 1.0

    @classmethod
    def of(cls, text: str, *, fetch: bool) -> Student:
        """Return the student that an item of --students names, BACKBONE or BACKBONE:WIDTH.

        It has ImageNet weights, or random ones if there are none for it. Raises UsageError for an unknown backbone or
        an impossible width, WeightsError if its ImageNet weights are not on this machine, unless `fetch` allows to
        download them.
        """
        backbone, colon, share = text.partition(":")
        weights = NONE if BACKBONES[backbone].weights_url is None else IMAGENET
        width = _width_of(backbone, share) if colon else 1.0
        try:
            return cls(
                backbone=backbone, weights=weights, file=find_weights(backbone, weights, fetch=fetch), width=width
            )
        except WeightsError as error:
            if fetch:
                raise WeightsError(
                    error.fact, f"leave {backbone} out of --students; or {place_by_hand(backbone)}"
                ) from error
            raise WeightsError(
                f"the ImageNet weights of {backbone} are not on this machine, so it cannot be one of --students",
                f"{again('--fetch')} downloads them; or leave it out",
            ) from error

    @property
    def name(self) -> str:
        """Return the item of --students that names it."""
        return self.backbone if self.width == 1 else f"{self.backbone}:{self.width:g}"

    def network(self, n_classes: int, image_size_px: int) -> nn.Module:
        """Return the network with its initial weights; the weights of its head are drawn from torch's random state.

        Of a width below 1, BatchNorm statistics of these weights are those of the full width.
        """
        network = build_classifier(self.backbone, n_classes)
        if self.file:
            load_weights(network, self.file, head_of(network))
        return network if self.width == 1 else at_width(network, self.width, image_size_px)


def _width_of(backbone: str, share: str) -> float:
    """Return the width of a student, checked on its backbone; raises UsageError."""
    named = f"--students {backbone}:{share}"
    try:
        width = parse_share(share)
    except ValueError:
        width = math.nan
    if not 0 < width <= 1:
        raise UsageError(
            f"{named}: the width is a share of the channels above 0 and up to 1",
            f"write {backbone}:0.5 for half of the channels",
        )
    try:
        require_width(backbone, width)
    except ChestxError as error:
        raise UsageError(f"{named}: {error.fact}", error.remedy) from error
    return width


@dataclass(frozen=True, kw_only=True)
class ShortFits:
    """The short fits of one split.

    Predictions are cached in `results`; `states` has the checkpoints from which fits continue. A search that was killed
    therefore resumes, even within a fit. `guide` is the parent's sensitivity, by which networks are guided; None if
    none is. If it `renews`, the results and states of earlier runs are removed before a network is fitted; `renewed`
    are the keys of the networks whose were.
    """

    parent: VariantRecord
    prober: Prober
    cutting: Cutting
    students: dict[str, Student]
    lr: float
    batch_size: int
    results: Path
    states: Path
    reporter: Reporter
    guide: Measured[GroupSensitivityRecord] | None = None
    renews: bool = False
    renewed: set[str] = field(default_factory=set)

    def has(self, network: Network, epochs: int) -> bool:
        """Return whether the result of a fit is cached, and need not be renewed."""
        return self._is_current(network) and self._result(network, epochs).exists()

    def predictions(self, network: Network, epochs: int) -> Predictions:
        """Fit a network for this many epochs in all, and return its predictions for the validation images.

        As for a variant that is built, the threshold is chosen by the parent's operating rule, and the temperature is
        fitted first if the parent's was. Raises IntegrityError for a damaged result.
        """
        import numpy as np

        if not self._is_current(network):
            self._forget(network)
        path, split = self._result(network, epochs), self.prober.data.split
        images = images_of(split, split.indices(VAL))
        if path.exists():
            try:
                probability = np.array(read_json(path), dtype=np.float64)
                if probability.shape != images.is_positive.shape:
                    raise ValueError("it is of other images")
            except (OSError, ValueError, TypeError) as error:
                raise IntegrityError(f"{path} is damaged: {error}", "remove it; the fit is then done again") from error
        else:
            probability = positive_probability(self._logits(network, epochs), split.positive)
            write_atomic(path, json.dumps(probability.tolist()))
        if self.parent.temperature_fit is not None:
            log_odds = log_odds_of(probability)
            probability = sigmoid(log_odds / (fit_temperature(log_odds, images.is_positive) or 1.0))
        rule = parse_rule(self.parent.operating_rule)
        return predictions_of(images, probability, choose_threshold(rule, images.is_positive, probability))

    def clear(self) -> None:
        """Remove all states; results stay in the cache."""
        Checkpoints(folder=self.states, identity={}, every_steps=None).clear()

    def _is_current(self, network: Network) -> bool:
        return not self.renews or self._key(network) in self.renewed

    def _forget(self, network: Network) -> None:
        key = self._key(network)
        for path in self.results.glob(f"short-fit-{key}-*.json"):
            path.unlink()
        self._checkpoints(network).clear()
        self.renewed.add(key)

    def _checkpoints(self, network: Network) -> Checkpoints:
        return Checkpoints(folder=self.states / self._key(network), identity=self._identity(network), every_steps=None)

    def _logits(self, network: Network, epochs: int) -> torch.Tensor:
        data, seed = self.prober.data, self.cutting.seed
        checkpoints = self._checkpoints(network)
        saved = checkpoints.load(STAGE)
        if saved is not None and saved.progress.epoch > epochs:
            # A search with longer short fits left it; its network has learned more than this one may have.
            checkpoints.clear()
        recipe = self._recipe(epochs)
        teacher = copy.deepcopy(self.prober.network)
        hook = distilling(teacher, recipe, temperature=TEMPERATURE, weight=TEACHER_WEIGHT)
        taught = replace(data, mix_loss=hook)

        def finetune(fitted: nn.Module, step: int) -> list[EpochRow]:
            return fit(
                fitted,
                taught,
                replace(recipe, seed=seed + step),
                self.reporter,
                stage=STAGE,
                checkpoints=checkpoints,
                continues=True,
            )

        with reproducible(seed):
            if network.student is not None:
                fitted, student = self.initial(network.student), self.students[network.student]
                if student.width < 1 and student.file:
                    reestimate_batchnorm(fitted, data, device=recipe.device, reporter=self.reporter)
                finetune(fitted, 0)
            else:
                fitted = self._pruned(network, finetune)
            move_to(fitted, recipe.device)
            logits = predict_logits(fitted, data, data.split.indices(VAL), device=recipe.device, precision="fp32")
            move_back(fitted)
        return logits

    def initial(self, student: str) -> nn.Module:
        """Return a student with the initial weights that the search's seed gives."""
        with reproducible(self.cutting.seed):
            side_px = self.prober.data.preprocessing.image_size_px
            return self.students[student].network(self.prober.n_classes, side_px)

    def _pruned(self, network: Network, finetune: Finetune) -> nn.Module:
        """Return the parent's network, pruned by the nearest share that this fold's widths allow, and fitted."""

        def without(amount: float) -> nn.Module:
            cutting = self.cutting_of(network)
            fitted, _ = prune_channels(
                self.prober.network,
                self.prober.data,
                cutting,
                amount=amount,
                steps=1,
                finetune=finetune,
                reporter=self.reporter,
            )
            return fitted

        try:
            return without(network.percent / 100)
        except ShareError as error:
            return without(round(error.nearest, 2))

    def cutting_of(self, network: Network) -> Cutting:
        """Return the rules for choosing the channels of a pruned network."""
        choice = network.choice
        if choice is None:
            return self.cutting
        return replace(self.cutting, criterion=choice.criterion, allocator=self._allocator(choice))

    def _allocator(self, choice: ChannelChoice) -> Allocator | None:
        if choice.method != GUIDED:
            return None
        assert self.guide is not None  # noqa: S101 - measured before guided networks compete
        return by_sensitivity(self.guide.record)

    def _recipe(self, epochs: int) -> Recipe:
        return recipe_of(
            epochs=epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            balance=self.parent.balance,
            loss=self.parent.loss,
            device="auto",
            precision="auto",
            compiled=False,
            seed=self.cutting.seed,
        )

    def _identity(self, network: Network) -> dict[str, object]:
        """Return everything that a network's fit depends on, except the number of epochs."""
        recipe, limits = self._recipe(0), self.cutting.limits
        student = self.students[network.student] if network.student is not None else None
        choice = network.choice
        guided = choice is not None and choice.method == GUIDED
        return {
            **({"guide": self.guide.sha256} if guided and self.guide else {}),
            "parent_sha256": self.parent.model_sha256,
            "split_sha256": self.prober.data.split.sha256,
            "percent": network.percent,
            "criterion": choice.criterion if choice else None,
            "student": network.student,
            "weights": identified(student.file) if student and student.file else None,
            "round_to": limits.round_to,
            "floor": limits.floor,
            "lr": self.lr,
            "batch_size": self.batch_size,
            "seed": self.cutting.seed,
            "device": recipe.device,
            "precision": recipe.precision,
        }

    def _key(self, network: Network) -> str:
        text = json.dumps(self._identity(network), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _result(self, network: Network, epochs: int) -> Path:
        return self.results / f"short-fit-{self._key(network)}-{epochs}.json"
