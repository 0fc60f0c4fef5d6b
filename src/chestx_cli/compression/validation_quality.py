"""A model's quality on the validation images of one split or of several folds, against that of its parent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.compression.search import Quality
from chestx_cli.evaluation.cells import auroc_gap_of
from chestx_cli.evaluation.endpoints import ACCURACY, ENDPOINTS
from chestx_cli.evaluation.predictions import stacked
from chestx_cli.evaluation.statistics.outcome import log_loss, log_odds_of
from chestx_cli.evaluation.verdicts import Margins, guards_of
from chestx_cli.records.answers import BROKEN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chestx_cli.evaluation.predictions import CellPair
    from chestx_cli.evaluation.statistics.intervals import Patients

AUROC = "auroc"


def quality_of(pairs: Sequence[CellPair], patients: Patients, endpoint: str | None) -> Quality:
    """Return a model's quality on the images of all folds; each pair is the parent's and the model's predictions.

    The drop is that of the endpoint; without one, the larger of the drops in accuracy and AUROC. `fell` lists the
    guards of the endpoint, or of accuracy, that decreased significantly. Values are pooled over folds, which may share
    patients; scores are compared only within a fold. patients: those of all images [N]. Raises StudyError if the
    endpoint is undefined on these images.
    """
    reference, model = (stacked([pair.cells[side] for pair in pairs]) for side in (0, 1))
    drops = [_drop_of(name, pairs) for name in ((ACCURACY, AUROC) if endpoint is None else (endpoint,))]
    drop, interval, dropped = max(drops, key=lambda one: one[0])
    guards = guards_of("", reference, model, patients, Margins(), auroc_gap_of(pairs), endpoint or ACCURACY)
    return Quality(
        accuracy=float(model.correct.mean()),
        drop=drop,
        dropped=dropped,
        drop_interval=interval,
        loss=log_loss(log_odds_of(model.probability), model.is_positive),
        fell=tuple(guard.measure for guard in guards if guard.state == BROKEN),
    )


def _drop_of(name: str, pairs: Sequence[CellPair]) -> tuple[float, tuple[float, float], str]:
    """Return how much worse the model is on an endpoint, with the 95 % interval, and the endpoint's name in text."""
    endpoint = ENDPOINTS[name]
    paired = endpoint.compare(pairs, margin=0.0)
    low, high = paired.interval.bounds
    # Subtracted from 0, so that no difference gives 0.0 instead of -0.0.
    return 0.0 - paired.difference, (0.0 - high, 0.0 - low), endpoint.noun
