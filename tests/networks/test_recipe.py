"""Refinements of a fit: learning rate, targets, averages, and early stopping."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from chestx_cli.compression.pruning.unstructured import cubic_amounts, target_sparsity
from chestx_cli.core.options import declared_fields
from chestx_cli.core.shared_options import COSINE, ONECYCLE, STUDYS, Refinements
from chestx_cli.networks import training
from chestx_cli.networks.fit_state import FitState
from chestx_cli.networks.losses import LOSSES, smoothed
from chestx_cli.networks.recipe import Recipe, rate_factor
from chestx_cli.networks.weights.serialization import load_network
from chestx_cli.reporting.page.methods import REFINED, refined
from chestx_cli.store.directory import Study
from conftest import TINY, Chestx

N_STEPS, PER_EPOCH = 40, 10
BATCH = ("--batch-size", "16")


def rates(refinements: Refinements) -> list[float]:
    return [rate_factor(refinements, step, of=N_STEPS, per_epoch=PER_EPOCH) for step in range(N_STEPS)]


def torchs(scheduler_of: Any) -> list[float]:
    """Return the rates of a scheduler of torch for a rate of 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = scheduler_of(optimizer)
    taken = []
    for _ in range(N_STEPS):
        taken.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return taken


def test_schedules_are_those_of_torch() -> None:
    schedulers = torch.optim.lr_scheduler
    assert rates(STUDYS) == [1.0] * N_STEPS
    assert rates(Refinements(schedule=COSINE)) == pytest.approx(
        torchs(lambda optimizer: schedulers.CosineAnnealingLR(optimizer, N_STEPS))
    )
    assert rates(Refinements(schedule=ONECYCLE)) == pytest.approx(
        torchs(lambda optimizer: schedulers.OneCycleLR(optimizer, 1.0, total_steps=N_STEPS))
    )


def test_a_warm_up_rises_evenly_and_then_the_schedule_begins() -> None:
    warmed = rates(Refinements(schedule=COSINE, warmup_epochs=0.5))
    assert warmed[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0])
    assert all(earlier > later for earlier, later in itertools.pairwise(warmed[5:]))
    assert rates(Refinements(warmup_epochs=0.5))[5:] == [1.0] * (N_STEPS - 5)


@pytest.mark.parametrize("loss", LOSSES)
def test_smoothed_targets(loss: str) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(12, 2, generator=generator)
    labels = torch.arange(12) % 2
    weight = torch.tensor([0.6, 1.4])
    assert torch.equal(smoothed(LOSSES[loss], logits, labels, weight, 0.0), LOSSES[loss](logits, labels, weight))
    spread = smoothed(LOSSES[loss], logits, labels, None, 0.2)
    if loss == "ce":
        assert spread.item() == pytest.approx(F.cross_entropy(logits, labels, label_smoothing=0.2).item())
    either = [LOSSES[loss](logits, torch.full_like(labels, one), None).item() for one in (0, 1)]
    assert spread.item() == pytest.approx(0.8 * LOSSES[loss](logits, labels, None).item() + 0.1 * sum(either))


@pytest.mark.parametrize("amount", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_cubic_steps_zero_as_many_in_all_and_most_at_first(amount: float, steps: int) -> None:
    amounts = cubic_amounts(amount, steps)
    assert target_sparsity(0.0, amounts) == pytest.approx(target_sparsity(0.0, (amount,) * steps))
    zeros = [target_sparsity(0.0, amounts[:step]) for step in range(steps + 1)]
    added = [after - before for before, after in itertools.pairwise(zeros)]
    assert added == sorted(added, reverse=True)


def test_a_fit_is_over_after_its_epochs_or_too_many_since_the_best() -> None:
    recipe = Recipe(
        epochs=6,
        batch_size=2,
        learning_rate=1.0,
        balance="none",
        loss="ce",
        device="cpu",
        precision="fp32",
        compiled=False,
        seed=0,
        refinements=Refinements(early_stop=2),
    )

    def over(*losses: float) -> bool:
        state: Any = SimpleNamespace(epoch=len(losses), history=[SimpleNamespace(val_loss=loss) for loss in losses])
        return training._is_over(state, recipe)

    assert not over()
    assert not over(0.5, 0.4, 0.6)
    assert over(0.5, 0.4, 0.6, 0.4)
    assert not over(0.5, 0.4, 0.6, 0.3)
    assert over(0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
    recipe = replace(recipe, refinements=STUDYS)
    assert not over(0.1, 0.2, 0.3, 0.4, 0.5)


def test_every_refinement_is_in_the_methods_text() -> None:
    changed = {"schedule": "cosine", "keep": "one-se", "early_stop": 3}
    for name, declared in declared_fields(Refinements).items():
        assert declared.parameter.default in {"constant", "lowest", 0, None}
        assert str(changed.get(name, 0.5)) in refined({name: changed.get(name, 0.5)})
    assert REFINED.keys() <= declared_fields(Refinements).keys()
    assert refined({"schedule": "constant", "ema": 0.0, "early_stop": None}) == ""
    assert refined({"schedule": "cosine", "weight_decay": 0.05}) == (
        "The fit had a learning rate by schedule cosine, weight decay 0.05."
    )


def trained(chestx: Chestx, study: Path, *more: object) -> dict[str, Any]:
    """Return the record of a fit of one epoch, unless it is given more."""
    outcome = chestx("train", "--study", study, *TINY, "--epochs", 1, *BATCH, "--name", "fit", "--force", *more)
    assert outcome.code == 0, outcome.err
    return dict(json.loads((study / "variants" / "fit" / "variant.json").read_text()))


def weights_of(study: Path) -> dict[str, torch.Tensor]:
    target = Study(study)
    return load_network(target, target.read_variant("fit")).state_dict()


def test_the_average_is_that_of_the_weights_after_each_step(
    chestx: Chestx, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "conv1.weight"
    seen: list[torch.Tensor] = []
    networks = []
    real_mode, real_rate = training._set_training, rate_factor

    def remember(state: FitState, recipe: Recipe, *, training: bool) -> None:
        networks.append(state.network)
        real_mode(state, recipe, training=training)

    def before_a_step(*args: Any, **options: Any) -> float:
        seen.append(networks[-1].state_dict()[name].detach().clone())
        return real_rate(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_set_training", remember)
        patch.setattr(training, "rate_factor", before_a_step)
        trained(chestx, fresh)
    last = weights_of(fresh)[name]
    # With these weights the average is the mean of the first weights and of those after each step.
    monkeypatch.setattr(training, "averaging_decay", lambda _ema, step: (1 + step) / (2 + step))
    trained(chestx, fresh, "--ema", 0.9)
    assert torch.allclose(weights_of(fresh)[name], torch.stack([*seen, last]).mean(dim=0), atol=1e-6)


def test_averaged_weights_have_statistics_of_their_own(
    chestx: Chestx, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trained(chestx, fresh)
    own = weights_of(fresh)
    monkeypatch.setattr(training, "averaging_decay", lambda _ema, _step: 0.0)
    averaged = trained(chestx, fresh, "--ema", 0.9)
    with_statistics = weights_of(fresh)
    different = {name for name, value in own.items() if not torch.equal(value, with_statistics[name])}
    assert different
    assert all(name.rpartition(".")[2] in {"running_mean", "running_var", "num_batches_tracked"} for name in different)
    assert averaged["training"]["best_val_loss"] != plain["training"]["best_val_loss"]


@pytest.mark.parametrize(
    "words",
    [
        ("train", *TINY, "--epochs", 3),
        ("prune", "--amount", 0.2, "--finetune-epochs", 3),
        ("prune", "--method", "structured", "--amount", 0.3, "--round-to", 1, "--finetune-epochs", 3),
        ("distill", "--backbone", "tiny", "--weights", "none", "--epochs", 3),
    ],
    ids=["train", "zeros", "channels", "student"],
)
def test_the_head_alone_is_trained_first(
    chestx: Chestx, fresh: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[object, ...]
) -> None:
    states: list[dict[str, torch.Tensor]] = []
    real = training._finish_epoch

    def remember(state: FitState, *rest: Any) -> None:
        states.append({name: value.detach().clone() for name, value in state.network.state_dict().items()})
        real(state, *rest)

    monkeypatch.setattr(training, "_finish_epoch", remember)
    outcome = chestx(*words, "--study", fresh, *BATCH, "--name", "fit", "--freeze-epochs", 2)
    assert outcome.code == 0, outcome.err
    changed = [
        {name for name, value in before.items() if not torch.equal(value, after[name])}
        for before, after in itertools.pairwise(states)
    ]
    # In the second epoch the head alone, in the third everything.
    assert changed[0]
    assert all(name.startswith("fc.") for name in changed[0])
    assert any(name.startswith("conv1.") for name in changed[1])


def test_weight_decay_spares_vectors_and_shrinks_the_rest(chestx: Chestx, fresh: Path) -> None:
    trained(chestx, fresh)
    plain = weights_of(fresh)
    trained(chestx, fresh, "--weight-decay", 1)
    decayed = weights_of(fresh)
    assert decayed["conv1.weight"].norm() < plain["conv1.weight"].norm()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--schedule", "onecycle", "--warmup-epochs", 0.5), "has its own warm-up"),
        (("--warmup-epochs", 1), "leaves nothing of a fit of 1 epoch"),
        (("--freeze-epochs", 1), "leaves nothing of a fit of 1 epoch"),
        (("--ema", 0.9, "--sync-batchnorm"), "estimates BatchNorm statistics itself"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(
    chestx: Chestx, fresh: Path, words: tuple[object, ...], says: str
) -> None:
    outcome = chestx("train", "--study", fresh, *TINY, "--epochs", 1, *words)
    assert outcome.code == 2
    assert says in outcome.err


def test_settings_of_fine_tuning_need_fine_tuning(chestx: Chestx, study: Path) -> None:
    outcome = chestx("prune", "--study", study, "--ema", 0.9, "--name", "averaged")
    assert outcome.code == 2
    assert "--ema has no effect here" in outcome.err
    long = chestx("prune", "--study", study, "--finetune-epochs", 2, "--warmup-epochs", 3, "--name", "warm")
    assert "give more --finetune-epochs" in long.err
    fits = ("--finetune-epochs", 2, *BATCH)
    made = chestx("prune", "--study", study, "--ema", 0.9, "--name", "averaged", *fits, "--early-stop", 1, "--json")
    assert made.json()["options"]["ema"] == 0.9
    gradual = chestx("prune", "--study", study, "--method", "iterative", "--gradual", *fits, "--json").json()
    assert gradual["name"] == "iterative-3x20-gradual"
    assert gradual["pruning"]["achieved_sparsity"] == pytest.approx(1 - 0.8**3, abs=0.01)
