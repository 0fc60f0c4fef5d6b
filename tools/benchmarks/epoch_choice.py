"""How good the epochs are that rules choose on few validation images.

    python -m tools.benchmarks.epoch_choice --studies fold-1 fold-2 fold-3 fold-4 fold-5

Each study's baseline is pruned and fine-tuned with the defaults of `prune --method structured`, on a copy. Half of the
patients of the validation images choose the epoch by each rule, and the others measure it. No test image is read.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch

from chestx_cli.commands.prune import prune
from chestx_cli.networks import training
from chestx_cli.networks.losses import cross_entropy, losses_of_images
from chestx_cli.networks.recipe import is_within_one_error
from chestx_cli.networks.training_data import predict_logits
from chestx_cli.store.directory import Study
from tools.harness.documents import insert
from tools.harness.machine import describe
from tools.harness.processes import ROOT, say

if TYPE_CHECKING:
    import numpy.typing as npt

HEADER = (
    "| epoch | loss of the other half | by study | loss of the choosing half | errors of the other half | chosen |",
    "|---|---:|---|---:|---:|---|",
)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Validation images of a fit: losses [epochs, N], whether wrongly classified [epochs, N], and patients [N]."""

    losses: torch.Tensor
    is_wrong: torch.Tensor
    patients: npt.NDArray[np.str_]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One choice of an epoch: its index, and what the choosing and the other half of the patients measure there."""

    epoch: int
    own_loss: float
    loss: float
    error_share: float


# From the losses [epochs, N] of the choosing images and their patients [N] to the index of an epoch.
Rule = Callable[[torch.Tensor, "npt.NDArray[np.str_]"], int]


def lowest(losses: torch.Tensor, patients: npt.NDArray[np.str_]) -> int:  # noqa: ARG001 - a rule
    """Return the epoch of the lowest mean loss."""
    return int(losses.mean(1).argmin())


def one_se(losses: torch.Tensor, patients: npt.NDArray[np.str_]) -> int:
    """Return the latest epoch within one standard error of the lowest mean loss."""
    best = lowest(losses, patients)
    return max(
        epoch
        for epoch in range(best, len(losses))
        if epoch == best or is_within_one_error(losses[epoch], losses[best], patients)
    )


def trailing(losses: torch.Tensor, patients: npt.NDArray[np.str_]) -> int:  # noqa: ARG001 - a rule
    """Return the epoch at which the mean loss of three epochs ends that is lowest."""
    return 2 + int(losses.mean(1).unfold(0, 3, 1).mean(1).argmin())


def last(losses: torch.Tensor, patients: npt.NDArray[np.str_]) -> int:  # noqa: ARG001 - a rule
    """Return the last epoch."""
    return len(losses) - 1


RULES: dict[str, Rule] = {
    "lowest loss (`--keep lowest`)": lowest,
    "lowest mean of three epochs": trailing,
    "latest within one standard error of the lowest (`--keep one-se`)": one_se,
    "the last": last,
}


def main(words: Sequence[str] | None = None) -> None:
    """Fine-tune in each study, and write the table into the results."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--studies", type=Path, nargs="+", required=True, help="with a baseline each")
    options.add_argument("--amount", type=float, default=0.75)
    options.add_argument("--halves", type=int, default=1000, help="random divisions of the patients")
    options.add_argument("--docs", type=Path, default=ROOT / "docs")
    arguments = options.parse_args(words)
    fits = [fitted(study, arguments.amount) for study in arguments.studies]
    lines = list(HEADER)
    for name, rule in RULES.items():
        choices = [chosen(fit, rule, arguments.halves) for fit in fits]
        by_study = [_mean(one.loss for one in of_study) for of_study in choices]
        every = [one for of_study in choices for one in of_study]
        epochs = sorted(one.epoch + 1 for one in every)
        cells = [
            name,
            f"{_mean(by_study):.3f}",
            ", ".join(f"{loss:.3f}" for loss in by_study),
            f"{_mean(one.own_loss for one in every):.3f}",
            f"{_mean(one.error_share for one in every):.1%}".replace("%", " %"),
            f"{epochs[0]} to {epochs[-1]}, median {epochs[len(epochs) // 2]}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    machine, typed = describe(), sys.argv[1:] if words is None else words
    shown = shlex.join(Path(word).name if "/" in word else word for word in typed)
    lines += [
        "",
        f"{len(fits)} fits of {len(fits[0].losses)} epochs, {len(fits[0].patients)} validation images in the first; "
        f"means over {arguments.halves:,} divisions each. Machine: {machine['processor']}, {machine['threads']} "
        f"processors ({machine['instructions']}); torch {machine['torch']}. Measured with "
        f"`python -m tools.benchmarks.epoch_choice {shown}`.",
    ]
    insert(arguments.docs / "results.md", "choice of the epoch", "\n".join(lines))
    print("\n".join(lines))


def fitted(study: Path, amount: float) -> Fit:
    """Prune and fine-tune a study's baseline on a copy; return its validation images, epoch by epoch."""
    say(f"fine-tuning in {study.name}")
    logits: list[torch.Tensor] = []
    real = predict_logits

    def recorded(*arguments: Any, **options: Any) -> torch.Tensor:
        logits.append(real(*arguments, **options))
        return logits[-1]

    with tempfile.TemporaryDirectory(prefix="chestx-epochs-") as work:
        copy = Path(work) / "study"
        shutil.copytree(study, copy, symlinks=True)
        with mock.patch.object(training, "predict_logits", recorded):
            prune(study=copy, method="structured", amount=amount, name="fitted", force=True)
        split = Study(copy).read_split()
    rows = split.indices("val")
    labels = torch.from_numpy(split.labels[rows])
    return Fit(
        losses=torch.stack([losses_of_images(cross_entropy, one.float(), labels, None) for one in logits]),
        is_wrong=torch.stack([one.argmax(1) != labels for one in logits]),
        patients=split.groups[rows],
    )


def chosen(fit: Fit, rule: Rule, halves: int) -> list[Choice]:
    """Return the choices of a rule on random halves of the patients, and what the other halves measure."""
    rng = np.random.default_rng(0)
    names = np.unique(fit.patients)
    choices = []
    for _ in range(halves):
        chooses = torch.from_numpy(np.isin(fit.patients, rng.permutation(names)[: len(names) // 2]))
        epoch = rule(fit.losses[:, chooses], fit.patients[chooses.numpy()])
        choices.append(
            Choice(
                epoch=epoch,
                own_loss=float(fit.losses[epoch, chooses].mean()),
                loss=float(fit.losses[epoch, ~chooses].mean()),
                error_share=float(fit.is_wrong[epoch, ~chooses].double().mean()),
            )
        )
    return choices


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


if __name__ == "__main__":
    main()
