"""Audit of decoded images: how ambiguous files were read, and images that look wrong."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from chestx_cli.data.images.films import AIR_BRIGHT, AIR_DARK, FEW_LEVELS
from chestx_cli.data.images.formats.readings import MEANINGS
from chestx_cli.data.images.sniffing import BY_CONTENT
from chestx_cli.records.split import AirRow, FewLevelsRow, LeftOutRow, TakenRow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from chestx_cli.data.images.decoding import FileFacts

VALUE_RANGE = "Value range"
# Share of a class's files left out from which on a warning is given.
NOTED_SHARE_LEFT_OUT = 0.1


def taken_rows(
    facts: Sequence[FileFacts], labels: Sequence[str], value_bits: int | None, sifted: Mapping[tuple[str, str], int]
) -> tuple[TakenRow, ...]:
    """Return the decisions on ambiguous files with their reasons, one row each, with the number of images."""
    rows = []
    if by_content := sum(n for (_, kind), n in sifted.items() if kind == BY_CONTENT):
        rows.append(TakenRow(matter="File", taken_as="image", because="its content, not its name", images=by_content))
    wide = [(label, fact.value_bits) for label, fact in zip(labels, facts, strict=True) if fact.value_bits is not None]
    if wide and value_bits is not None:
        most = {label: max(bits for own, bits in wide if own == label) for label in sorted({own for own, _ in wide})}
        used = ", ".join(f"{label} {bits}" for label, bits in most.items())
        rows.append(
            TakenRow(
                matter=VALUE_RANGE,
                taken_as=f"0 to {2**value_bits - 1:,} ({value_bits} bits)",
                because=f"most bits in use, of more than 8: {used}",
                images=len(wide),
            )
        )
    counts = Counter(reading for fact in facts for reading in fact.readings)
    rows += [
        TakenRow(matter=meaning.matter, taken_as=meaning.taken_as, because=meaning.because, images=counts[reading])
        for reading, meaning in MEANINGS.items()
        if counts[reading]
    ]
    return tuple(rows)


def taken_notes(rows: Sequence[TakenRow]) -> tuple[str, ...]:
    """Return the same as sentences, for images without such a table."""
    return tuple(f"{row.matter}: {row.taken_as} ({row.because}; {row.images:,} images)." for row in rows)


def left_out_rows(sifted: Mapping[tuple[str, str], int]) -> tuple[LeftOutRow, ...]:
    """Return the number of files of each class that are not images, by reason."""
    return tuple(
        LeftOutRow(label=label, reason=kind, files=n)
        for (label, kind), n in sorted(sifted.items())
        if kind != BY_CONTENT
    )


def left_out_notes(rows: Sequence[LeftOutRow], labels: Sequence[str]) -> tuple[str, ...]:
    """Return a sentence for each class of which many files are left out: half a class may be missing."""
    images, left_out = Counter(labels), Counter[str]()
    for row in rows:
        left_out[row.label] += row.files
    return tuple(
        f"Of the {n + images[label]:,} files of {label}, {n:,} are left out: "
        + ", ".join(f"{row.files:,} × {row.reason}" for row in rows if row.label == label)
        + "."
        for label, n in left_out.items()
        # Files outside the class folders belong to no class.
        if images[label] and n >= NOTED_SHARE_LEFT_OUT * (n + images[label])
    )


def few_levels(facts: Sequence[FileFacts], ids: Sequence[str]) -> tuple[FewLevelsRow, ...]:
    """Return the images that use few of the 256 grey levels."""
    return tuple(
        FewLevelsRow(image_id=image_id, levels=fact.levels)
        for image_id, fact in zip(ids, facts, strict=True)
        if fact.levels <= FEW_LEVELS
    )


def air_rows(air: Sequence[int], labels: Sequence[str]) -> tuple[AirRow, ...]:
    """Return for each class the number of images in which air is dark, bright or undecided."""
    counts = Counter(zip(labels, air, strict=True))
    return tuple(
        AirRow(
            label=label,
            dark=counts[label, AIR_DARK],
            bright=counts[label, AIR_BRIGHT],
            undecided=sum(n for (own, _), n in counts.items() if own == label)
            - counts[label, AIR_DARK]
            - counts[label, AIR_BRIGHT],
        )
        for label in sorted(set(labels))
    )


def film_notes(
    facts: Sequence[FileFacts], air: Sequence[int], labels: Sequence[str], ids: Sequence[str]
) -> tuple[str, ...]:
    """Return warnings about suspicious images: few grey levels, or inverted unlike the others."""
    notes = []
    if few := few_levels(facts, ids):
        own = {row.image_id for row in few}
        counted = _by_class([label for label, image_id in zip(labels, ids, strict=True) if image_id in own])
        notes.append(
            f"Few grey levels: {len(few):,} images ({counted}) use at most {FEW_LEVELS} of 256, such as "
            f"{few[0].image_id} with {few[0].levels}. If they look nearly black or flat, save them again with the "
            "value range of the others."
        )
    bright = [row for row, looks in enumerate(air) if looks == AIR_BRIGHT]
    dark = sum(looks == AIR_DARK for looks in air)
    if bright:
        counted = _by_class([labels[row] for row in bright])
        fact = "Polarity is mixed" if dark else "All images may be inverted"
        notes.append(
            f"{fact}: air looks bright in {len(bright):,} images ({counted}), such as {ids[bright[0]]}, and dark in "
            f"{dark:,}. Look at them, and invert those that are negatives. The check looks at borders, lungs and "
            "spine of upright frontal films, and may misjudge one that lies on its side."
        )
    return tuple(notes)


def _by_class(labels: Sequence[str]) -> str:
    return ", ".join(f"{label} {n:,}" for label, n in sorted(Counter(labels).items()))
