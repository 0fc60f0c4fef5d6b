"""The order of images in an epoch: random over all images, or runs of neighbours shuffled in a bounded buffer."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from chestx_cli.networks.parallel.ranks import parts

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from chestx_cli.networks.parallel.ranks import Ranks
    from chestx_cli.store.split import Split

    Rows = npt.NDArray[np.int64]

# Neighbours that stay together until they are in the buffer: long enough for sequential reads, and short enough that a
# buffer holds runs from many places, even of a set that is sorted by class.
RUN = 64


def draw_order(split: Split, balance: str, rng: np.random.Generator) -> Rows:
    """Return the training rows of one epoch: shuffled, or drawn with replacement and equal class probabilities."""
    import numpy as np

    rows = split.indices("train")
    if balance in {"both", "sampler"}:
        counts = np.bincount(split.labels[rows])
        chance = 1.0 / counts[split.labels[rows]]
        return rng.choice(rows, size=len(rows), replace=True, p=chance / chance.sum())
    return rng.permutation(rows)


def batches_of(rows: Rows, batch_size: int) -> list[Rows]:
    """Cut rows into batches; a last batch of one image joins the previous one: BatchNorm needs at least two."""
    starts = list(range(0, len(rows), batch_size))
    if len(starts) > 1 and len(rows) - starts[-1] == 1:
        starts.pop()
    return [rows[start:end] for start, end in zip(starts, [*starts[1:], len(rows)], strict=True)]


def in_runs(batches: list[Rows], buffer: int, ranks: Ranks, rng: np.random.Generator) -> list[Rows]:
    """Return batches of the same sizes with the same rows, in an order that allows reading in order.

    The rows are sorted and cut into runs. The runs are shuffled and divided among the processes; each process shuffles
    its share of `buffer` images at a time. The share of each batch that a process computes has rows of its own runs.
    """
    import numpy as np

    rows = np.sort(np.concatenate(batches))
    starts = rng.permutation(np.arange(0, len(rows), RUN))
    rows = np.concatenate([rows[start : start + RUN] for start in starts.tolist()])
    shares = [parts(len(batch), ranks.n, ranks.least_images) for batch in batches]
    bounds = np.cumsum([0, *map(len, batches)]).tolist()
    order = np.empty_like(rows)
    at_once = max(1, buffer // ranks.n)
    taken = 0
    for rank in range(ranks.n):
        own = rows[taken : taken + sum(share[rank].stop - share[rank].start for share in shares)]
        taken += len(own)
        for start in range(0, len(own), at_once):
            rng.shuffle(own[start : start + at_once])
        for first, share in zip(bounds[:-1], shares, strict=True):
            n = share[rank].stop - share[rank].start
            order[first + share[rank].start : first + share[rank].stop], own = own[:n], own[n:]
    return [order[first:last] for first, last in pairwise(bounds)]
