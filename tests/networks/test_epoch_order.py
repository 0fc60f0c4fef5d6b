"""Sequential reading: the images drawn, in runs, divided among processes, shuffled, within bounded memory."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from chestx_cli.data.images.pixel_cache import CHUNK
from chestx_cli.data.streams import reading
from chestx_cli.networks.epoch_order import RUN, batches_of, in_runs
from chestx_cli.networks.parallel.ranks import Ranks

N = 5000


def drawn(seed: int = 0, *, balanced: bool = False) -> npt.NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    return rng.choice(N, N) if balanced else rng.permutation(N)


def runs_of(rows: npt.NDArray[np.int64]) -> int:
    """Return from how many places rows are read, in order, neighbours at once."""
    return 1 + int((np.diff(np.unique(rows)) > 2).sum())


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("balanced", [False, True])
def test_an_epoch_in_runs_has_the_images_that_were_drawn_and_reads_few_places_at_once(
    n: int, *, balanced: bool
) -> None:
    batches = batches_of(drawn(balanced=balanced), 33)
    ordered = in_runs(batches, 1024, Ranks(n=n), np.random.default_rng(1))
    assert list(map(len, ordered)) == list(map(len, batches))
    assert np.array_equal(np.sort(np.concatenate(ordered)), np.sort(np.concatenate(batches)))
    at_once = 1024 // n
    for rank in range(n):
        own = np.concatenate([rows[Ranks(rank=rank, n=n).part(len(rows))] for rows in ordered])
        for start in range(0, len(own), at_once):
            window = own[start : start + at_once]
            # A balanced draw leaves images out, which a run passes over.
            limit = at_once // RUN + 2
            if not balanced:
                assert runs_of(window) <= limit
            assert len(np.unique(window // RUN)) < N // RUN
            assert not np.array_equal(window, np.sort(window))


def test_each_process_reads_runs_of_its_own() -> None:
    ordered = in_runs(batches_of(drawn(), 32), 1024, Ranks(n=2), np.random.default_rng(1))
    one, other = (
        set(np.concatenate([rows[Ranks(rank=rank, n=2).part(len(rows))] for rows in ordered]).tolist())
        for rank in (0, 1)
    )
    assert not one & other
    shared = {row // RUN for row in one} & {row // RUN for row in other}
    assert len(shared) <= 1, "one run may be cut"


def test_another_epoch_has_another_order_and_the_same_one_the_same() -> None:
    first, second, again = (
        np.concatenate(in_runs(batches_of(drawn(), 32), 512, Ranks(), np.random.default_rng(seed)))
        for seed in (1, 2, 1)
    )
    assert not np.array_equal(first, second)
    assert np.array_equal(first, again)


class Counted:
    """Images whose value is their row; counts those that are read and were not yet taken."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.reads: list[int] = []

    def __getitem__(self, rows: Any) -> npt.NDArray[np.uint8]:
        with self.lock:
            self.reads += rows.tolist()
        time.sleep(0.001)
        images: npt.NDArray[np.uint8] = np.broadcast_to((rows % 251).astype(np.uint8)[:, None, None], (len(rows), 2, 2))
        return images


@pytest.mark.parametrize("at_once", [64, 100, 1000, 10000])
def test_images_are_read_ahead_in_order_and_within_the_bound(at_once: int) -> None:
    rows, images = drawn(balanced=True), Counted()
    taken = 0
    with reading(images, rows, at_once=at_once) as take:  # type: ignore[arg-type]
        for n in (1, 32, 0, 7, *[31] * 150):
            got = take(n)
            assert got.shape == (n, 2, 2)
            assert np.array_equal(got[:, 0, 0], rows[taken : taken + n] % 251)
            taken += n
            window_end = -(-max(taken, 1) // at_once) * at_once
            assert len(images.reads) <= len(rows[:window_end]) + max(at_once, 40 * CHUNK)
    for start in range(0, taken, at_once):
        wanted = np.unique(rows[start : start + at_once])
        read = images.reads[: len(wanted)]
        images.reads = images.reads[len(wanted) :]
        if len(read) == len(wanted):
            assert sorted(read) == wanted.tolist(), "each image once per window"


def test_a_failed_read_is_raised_where_its_image_is_taken() -> None:
    class Broken:
        def __getitem__(self, rows: Any) -> npt.NDArray[np.uint8]:
            if 300 in rows:
                raise ValueError("damaged")
            return np.zeros((len(rows), 2, 2), dtype=np.uint8)

    with reading(Broken(), np.arange(1000), at_once=64) as take:  # type: ignore[arg-type]
        take(256)
        with pytest.raises(ValueError, match="damaged"):
            take(64)
