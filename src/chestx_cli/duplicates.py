"""The same image twice: equal files, equal pixels, and near-duplicates such as a resized or recompressed copy.

Near-duplicates are proposed by a perceptual hash and confirmed by correlation. Chest X-rays all look alike, so both see
more detail than is usual: 256 bits, and 64×64 pixels from which the blurred image, the chest that all have, is taken.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    import numpy.typing as npt

    from chestx_cli.images import FileFacts
    from chestx_cli.scanning import Scan

    Pairs = npt.NDArray[np.int64]

SAME_FILE, SAME_PIXELS, NEAR = "same file", "same pixels", "near-duplicate"
KINDS = (SAME_FILE, SAME_PIXELS, NEAR)
# benchmarks/leaks.py draws what other thresholds would find and join.
MIN_CORRELATION = 0.90
HASH_SIDE = 16
# Copies differ in up to 30 of the 256 bits, films of different patients in about 110.
MAX_HASH_DISTANCE = 48
BANDS = 12
BAND_BITS = HASH_SIDE * HASH_SIDE // BANDS
DETAIL_SIGMA_PX = 2.0
BLOCK = 256
PAIRS_AT_ONCE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Link:
    """Two images (rows) that are one, why, and how far their perceptual hashes and details agree."""

    first: int
    second: int
    kind: str
    hash_distance: int = 0
    correlation: float = 1.0


def find_duplicates(facts: Sequence[FileFacts], scan: Scan, pixels_sha256: Callable[[int], str]) -> tuple[Link, ...]:
    """Return links that join every set of duplicates; the first image of a set stands for its copies.

    Files are equal by their hashes. `pixels_sha256` decodes a file at its full size, and is asked only where the size
    and the network-size pixels of two agree. All others are compared as near-duplicates.
    """
    import numpy as np

    links = [
        Link(first=rows[0], second=row, kind=SAME_FILE)
        for rows in _sets(range(len(facts)), lambda row: facts[row].sha256)
        for row in rows[1:]
    ]
    copies = {link.second for link in links}
    files = [row for row in range(len(facts)) if row not in copies]
    for alike in _sets(files, lambda row: (facts[row].width_px, facts[row].height_px, int(scan.sums[row]))):
        for rows in _sets(alike, pixels_sha256):
            links += [Link(first=rows[0], second=row, kind=SAME_PIXELS) for row in rows[1:]]
            copies.update(rows[1:])
    distinct = np.array([row for row in files if row not in copies], dtype=np.int64)
    return (*links, *_near_duplicates(scan.thumbs, distinct))


def _sets(rows: Sequence[int], key: Callable[[int], object]) -> Iterator[list[int]]:
    """Yield the rows that share a key with another."""
    by_key: dict[object, list[int]] = defaultdict(list)
    for row in rows:
        by_key[key(row)].append(row)
    yield from (found for found in by_key.values() if len(found) > 1)


def _near_duplicates(thumbs: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64]) -> list[Link]:
    import numpy as np

    hashes = np.concatenate([perceptual_hashes(thumbs[rows[at]]) for at in _blocks(len(rows))])
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
    """Return ImageHash's pHash of 16×16 bits for thumbnails [n, 64, 64], as four words each [n, 4].

    A bit tells whether a low-frequency coefficient of the cosine transform is above their median. ImageHash itself
    takes one image at a time, ten times as long; a test compares the two.
    """
    import numpy as np
    from scipy.fft import dct

    basis = dct(np.eye(thumbs.shape[1], dtype=np.float32), axis=0)[:HASH_SIDE]
    low = (basis @ thumbs.astype(np.float32) @ basis.T).reshape(len(thumbs), -1)
    bits = np.packbits(low > np.median(low, axis=1, keepdims=True), axis=1)
    return bits.view(np.uint64)


def hash_distances(hashes: npt.NDArray[np.uint64], pairs: Pairs) -> npt.NDArray[np.int64]:
    """Return in how many bits the hashes of each pair [n, 2] differ."""
    import numpy as np

    found: npt.NDArray[np.int64] = np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]).sum(
        axis=1, dtype=np.int64
    )
    return found


def propose_pairs(hashes: npt.NDArray[np.uint64]) -> Pairs:
    """Return the pairs [n, 2] of images whose hashes differ in at most MAX_HASH_DISTANCE bits.

    The bits are dealt to 12 bands of 21. A pair is looked at if it agrees in a band but for one bit, which every pair
    that differs in fewer than 24 bits does (pigeonhole), and nearly all with 30; so the cost grows with the number of
    images and of look-alikes, not with the number of pairs. Images of one hash are compared with the first of them.
    """
    import numpy as np

    _, first, inverse = np.unique(hashes, axis=0, return_index=True, return_inverse=True)
    inverse = inverse.reshape(-1)
    same = np.flatnonzero(first[inverse] != np.arange(len(hashes)))
    found = [np.stack([first[inverse[same]], same], axis=1)]
    bits = np.unpackbits(hashes[first].view(np.uint8).reshape(len(first), -1), axis=1)
    weights = 1 << np.arange(BAND_BITS, dtype=np.int64)
    codes = np.empty(0, dtype=np.int64)
    for band in range(BANDS):
        # Neighbouring bits are alike in all chests; each band takes some from everywhere.
        keys = bits[:, band::BANDS][:, :BAND_BITS].astype(np.int64) @ weights
        for pairs in _agreeing(keys):
            near = pairs[hash_distances(hashes, first[pairs]) <= MAX_HASH_DISTANCE]
            near.sort(axis=1)
            codes = np.union1d(codes, near[:, 0] * len(first) + near[:, 1])
    found.append(first[np.stack([codes // max(len(first), 1), codes % max(len(first), 1)], axis=1)])
    return np.sort(np.concatenate(found), axis=1)


def _agreeing(keys: npt.NDArray[np.int64]) -> Iterator[Pairs]:
    """Yield the pairs whose keys are equal or differ in one bit, each once, a bounded number at a time."""
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
    """Return for each pair of rows [n, 2] the correlation of the details of their thumbnails; 0 for blank images.

    Details are what is left of a thumbnail without its blurred self, with mean 0 and norm 1: brightness and contrast
    have no part in it.
    """
    import numpy as np

    found = np.empty(len(pairs))
    # Pairs are ordered by their first image, and a block then touches few thumbnails twice.
    for at in _blocks(len(pairs)):
        rows, inverse = np.unique(pairs[at], return_inverse=True)
        details = _details(thumbs[rows])
        first, second = inverse.reshape(-1, 2).T
        found[at] = np.einsum("ij,ij->i", details[first], details[second])
    return found


def _details(thumbs: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    import numpy as np
    from scipy.ndimage import gaussian_filter

    whole = thumbs.astype(np.float32)
    fine = (whole - gaussian_filter(whole, (0, DETAIL_SIGMA_PX, DETAIL_SIGMA_PX))).reshape(len(thumbs), -1)
    fine -= fine.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(fine, axis=1, keepdims=True)
    shown: npt.NDArray[np.float32] = np.where(norm > 1e-3, fine / np.maximum(norm, 1e-3), 0)
    return shown
