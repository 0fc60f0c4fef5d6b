"""Duplicate images: equal files, equal pixels, and near-duplicates such as a resized or recompressed copy.

Near-duplicates are proposed by a perceptual hash and confirmed by correlation. All chest X-rays look similar, so both
use more detail than usual: 256 bits, and 64×64 pixels after subtracting the blurred image, which all chests have in
common.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.core.machine import available_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    import numpy.typing as npt

    from chestx_cli.data.images.decoding import FileFacts
    from chestx_cli.data.scanning import Scan

    Pairs = npt.NDArray[np.int64]

SAME_FILE, SAME_PIXELS, NEAR = "same file", "same pixels", "near-duplicate"
KINDS = (SAME_FILE, SAME_PIXELS, NEAR)
# tools/benchmarks/leaks.py plots what other thresholds would find and join.
MIN_CORRELATION = 0.90
HASH_SIDE = 16
# Copies differ in up to about 30 of the 256 bits, images of different patients in 56 to 160.
MAX_HASH_DISTANCE = 32
BANDS = 12
BANDS_AT_ONCE = 3
BAND_BITS = HASH_SIDE * HASH_SIDE // BANDS
DETAIL_SIGMA_PX = 2.0
BLOCK = 256
PAIRS_AT_ONCE = 500_000


@dataclass(frozen=True, kw_only=True)
class Link:
    """Two copies of one image (rows), the way they were detected, and the agreement of their hashes and details."""

    first: int
    second: int
    kind: str
    hash_distance: int = 0
    correlation: float = 1.0


def find_duplicates(facts: Sequence[FileFacts], scan: Scan, pixels_sha256: Callable[[int], str]) -> tuple[Link, ...]:
    """Return links that connect every set of duplicates; the first image of a set represents its copies.

    Equal files are found by hash. `pixels_sha256` decodes a file at full size; it is called only if the sizes and the
    network-size pixels of two images agree. All others are compared as near-duplicates.
    """
    import numpy as np

    links = list(same_files([fact.sha256 for fact in facts]))
    copies = {link.second for link in links}
    files = [row for row in range(len(facts)) if row not in copies]
    for alike in _sets(files, lambda row: (facts[row].width_px, facts[row].height_px, int(scan.sums[row]))):
        for rows in _sets(alike, pixels_sha256):
            links += [Link(first=rows[0], second=row, kind=SAME_PIXELS) for row in rows[1:]]
            copies.update(rows[1:])
    distinct = np.array([row for row in files if row not in copies], dtype=np.int64)
    return (*links, *near_duplicates(scan.thumbs, distinct))


def same_files(sha256: Sequence[str]) -> tuple[Link, ...]:
    """Return links between files with equal hashes [N], from the first file of each set to the others."""
    return tuple(
        Link(first=rows[0], second=row, kind=SAME_FILE)
        for rows in _sets(range(len(sha256)), lambda row: sha256[row])
        for row in rows[1:]
    )


def _sets(rows: Sequence[int], key: Callable[[int], object]) -> Iterator[list[int]]:
    """Yield the rows that share a key with another."""
    by_key: dict[object, list[int]] = defaultdict(list)
    for row in rows:
        by_key[key(row)].append(row)
    yield from (alike for alike in by_key.values() if len(alike) > 1)


def near_duplicates(thumbs: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64]) -> list[Link]:
    """Return links between the rows of thumbnails [n, 64, 64] that show one image; the lower row is the first."""
    import numpy as np

    with ThreadPoolExecutor(available_threads()) as pool:
        hashes = np.concatenate([*pool.map(lambda at: perceptual_hashes(thumbs[rows[at]]), _blocks(len(rows)))])
    pairs = propose_pairs(hashes)
    agreement = correlations(thumbs, rows[pairs])
    kept = agreement >= MIN_CORRELATION
    distances = hash_distances(hashes, pairs[kept])
    return [
        Link(first=int(first), second=int(second), kind=NEAR, hash_distance=int(distance), correlation=float(value))
        for (first, second), distance, value in zip(rows[pairs[kept]], distances, agreement[kept], strict=True)
    ]


def _blocks(total: int) -> Iterator[slice]:
    yield from (slice(start, min(start + BLOCK, total)) for start in range(0, total, BLOCK))


def perceptual_hashes(thumbs: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Return ImageHash's 16×16-bit pHash of thumbnails [n, 64, 64], as four words each [n, 4].

    A bit is set if a low-frequency coefficient of the cosine transform exceeds their median. ImageHash itself processes
    one image at a time and takes ten times as long; a test compares the two.
    """
    import numpy as np
    from scipy.fft import dct

    basis = dct(np.eye(thumbs.shape[1], dtype=np.float32), axis=0)[:HASH_SIDE]
    low = (basis @ thumbs.astype(np.float32) @ basis.T).reshape(len(thumbs), -1)
    bits = np.packbits(low > np.median(low, axis=1, keepdims=True), axis=1)
    return bits.view(np.uint64)


def hash_distances(hashes: npt.NDArray[np.uint64], pairs: Pairs) -> npt.NDArray[np.int64]:
    """Return the Hamming distance between the hashes of each pair [n, 2]."""
    import numpy as np

    distances: npt.NDArray[np.int64] = np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]).sum(
        axis=1, dtype=np.int64
    )
    return distances


def propose_pairs(hashes: npt.NDArray[np.uint64]) -> Pairs:
    """Return the pairs [n, 2] of images whose hashes differ in at most MAX_HASH_DISTANCE bits.

    The bits are distributed over 12 bands of 21. Candidates are the pairs that agree in a band except for at most one
    bit: all pairs with fewer than 24 different bits (pigeonhole principle), and nearly all with 30. The cost therefore
    grows with the number of images and of similar pairs, not of all pairs. Images with equal hashes are represented by
    the first of them.
    """
    import numpy as np

    _, first, inverse = np.unique(hashes, axis=0, return_index=True, return_inverse=True)
    inverse = inverse.reshape(-1)
    same = np.flatnonzero(first[inverse] != np.arange(len(hashes)))
    proposed = [np.stack([first[inverse[same]], same], axis=1)]
    distinct = hashes[first]
    masks = _band_masks()

    def agreeing_in(band: int) -> list[Pairs]:
        mine = []
        for pairs in _agreeing(_band_keys(distinct, band)):
            differing = distinct[pairs[:, 0]] ^ distinct[pairs[:, 1]]
            near = np.bitwise_count(differing).sum(axis=1) <= MAX_HASH_DISTANCE
            pairs, differing = pairs[near], differing[near]
            # Pairs that agree in an earlier band were found there.
            for earlier in masks[:band]:
                new = np.bitwise_count(differing & earlier).sum(axis=1) > 1
                pairs, differing = pairs[new], differing[new]
            mine.append(first[pairs])
        return mine

    # A band of a million images needs 430 MB.
    with ThreadPoolExecutor(min(available_threads(), BANDS_AT_ONCE)) as pool:
        for mine in pool.map(agreeing_in, range(BANDS)):
            proposed += mine
    return np.sort(np.concatenate(proposed), axis=1)


def _band_masks() -> npt.NDArray[np.uint64]:
    """Return the bits of each band as words [12, 4]; bands sample the whole hash: neighbouring bits are similar."""
    import numpy as np

    dealt = np.zeros((BANDS, HASH_SIDE * HASH_SIDE), dtype=np.uint8)
    for band in range(BANDS):
        dealt[band, band::BANDS][:BAND_BITS] = 1
    return np.packbits(dealt, axis=1).view(np.uint64)


def _band_keys(hashes: npt.NDArray[np.uint64], band: int) -> npt.NDArray[np.int64]:
    """Return the bits of one band as integers [n]."""
    import numpy as np

    bits = np.unpackbits(hashes.view(np.uint8).reshape(len(hashes), -1), axis=1)
    keys: npt.NDArray[np.int64] = bits[:, band::BANDS][:, :BAND_BITS] @ (1 << np.arange(BAND_BITS, dtype=np.int64))
    return keys


def _agreeing(keys: npt.NDArray[np.int64]) -> Iterator[Pairs]:
    """Yield the pairs whose keys are equal or differ in one bit, each once, in bounded batches."""
    import numpy as np

    order = np.argsort(keys, kind="stable")
    in_order = keys[order]
    bounds = np.zeros((1 << BAND_BITS) + 1, dtype=np.int64)
    np.cumsum(np.bincount(keys, minlength=1 << BAND_BITS), out=bounds[1:])
    for flipped in (0, *(1 << bit for bit in range(BAND_BITS))):
        if flipped:
            at = np.flatnonzero(in_order & flipped == 0)
            begin, end = bounds[in_order[at] | flipped], bounds[(in_order[at] | flipped) + 1]
        else:
            at = np.arange(len(keys))
            begin, end = at + 1, bounds[in_order + 1]
        counts = end - begin
        at, begin, counts = at[counts > 0], begin[counts > 0], counts[counts > 0]
        upto = np.cumsum(counts)
        start = 0
        while start < len(at):
            done = upto[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(upto, done + PAIRS_AT_ONCE)))
            n = counts[start:stop]
            left = np.repeat(at[start:stop], n)
            right = np.arange(n.sum()) - np.repeat(upto[start:stop] - n - done, n) + np.repeat(begin[start:stop], n)
            yield np.stack([order[left], order[right]], axis=1)
            start = stop


def correlations(thumbs: npt.NDArray[np.uint8], pairs: Pairs) -> npt.NDArray[np.float64]:
    """Return the correlation of the details of two thumbnails for each pair of rows [n, 2]; 0 for blank images.

    Details are a thumbnail minus its blurred version, with mean 0 and norm 1, so that brightness and contrast have no
    influence. They are stored in 8 bits, which changes a correlation by less than 0.002.
    """
    import numpy as np

    rows, inverse = np.unique(pairs, return_inverse=True)
    agreement = np.zeros(len(pairs))
    with tempfile.TemporaryFile() as file:
        for at in _blocks(len(rows)):
            file.write(_details(thumbs[rows[at]]).data)
        file.flush()
        if len(rows) == 0:
            return agreement
        details = np.memmap(file, dtype=np.int8, mode="r", shape=(len(rows), thumbs[0].size))
        norms = np.concatenate([np.linalg.norm(details[at].astype(np.float32), axis=1) for at in _blocks(len(rows))])
        for at in _blocks(len(pairs)):
            first, second = inverse.reshape(-1, 2)[at].T
            products = np.einsum("ij,ij->i", details[first].astype(np.float32), details[second].astype(np.float32))
            agreement[at] = products / np.maximum(norms[first] * norms[second], 1)
    return agreement


def _details(thumbs: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
    import numpy as np
    from scipy.ndimage import gaussian_filter

    whole = thumbs.astype(np.float32)
    fine = (whole - gaussian_filter(whole, (0, DETAIL_SIGMA_PX, DETAIL_SIGMA_PX))).reshape(len(thumbs), -1)
    fine -= fine.mean(axis=1, keepdims=True)
    largest = np.abs(fine).max(axis=1, keepdims=True)
    # The details of a blank image are rounding errors.
    kept: npt.NDArray[np.int8] = np.where(largest > 0.01, np.rint(127 * fine / np.maximum(largest, 0.01)), 0).astype(
        np.int8
    )
    return kept
