"""Caveats of a split and its models, and the short stamps that put them above every table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.core.printable import counted
from chestx_cli.records.split import SPLITS, TEST, TRAIN, UNMATCHED, VAL

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from chestx_cli.core.command import Run
    from chestx_cli.records.split import GroupRuleRow
    from chestx_cli.store.directory import Study
    from chestx_cli.store.split import Split

NO_LEAK = "No patient and no file is in more than one part."
# Stamps of the images: the word that begins a caveat and is repeated above every table.
UNGROUPED, LEAKED, UNREAD = "UNGROUPED", "LEAKED", "UNREAD"
# Stamps of models: not shown to have learned anything; made from a parent that has changed since.
UNPROVEN, STALE = "UNPROVEN", "STALE"
MODEL_STAMPS = (UNPROVEN, STALE)
# Stamps of images are stored with a result; those of models are determined at each use.
IMAGE_STAMPS = (UNGROUPED, LEAKED, UNREAD)
# Images shared only by train and val bias the selection of epoch and threshold, but no test result.
LEAKED_INTO_VAL = f"{LEAKED} into val"


def caveats(split: Split, rules: tuple[GroupRuleRow, ...]) -> tuple[str, ...]:
    """Return a sentence with its stamp for each of: leaks, unknown patients, and images that were not read."""
    sentences = []
    for keys, thing in ((split.groups, "patient"), (split.image_sha256, "image file")):
        tested, chosen_on = _in_several(keys, split.parts)
        if tested:
            sentences.append(
                f"{LEAKED}: {_are(tested, thing)} in test and in another part of the split. Test results are biased "
                "upwards; chestx split --resplit divides the images by patient."
            )
        if chosen_on:
            sentences.append(
                f"{LEAKED_INTO_VAL}: {_are(chosen_on, thing)} in train and val, and not in test. The epoch and the "
                "threshold are partly chosen on what was trained on; the test images are unaffected. chestx split "
                "--resplit divides the images by patient."
            )
    unknown = sum(rule.images for rule in rules if rule.rule == UNMATCHED)
    if unknown:
        sentences.append(
            f"{ungrouped(unknown, len(split.parts))}: The patient of {unknown:,} of {len(split.parts):,} images is "
            "unknown: each counts as its own patient. If a patient has several images, they may be in two parts: "
            "results are then biased upwards and intervals too narrow. Give --groups, --group-regex or a manifest "
            "with a group column."
        )
    if split.unread:
        sentences.append(
            f"{UNREAD}: The images were not opened when they were split: equal pixels and near-duplicates may be in "
            "two parts. Split without --unread to look for them."
        )
    return tuple(sentences)


def ungrouped(unknown: int, images: int) -> str:
    """Return the stamp for images of unknown patients, with their number unless it is all of them."""
    return UNGROUPED if unknown == images else f"{UNGROUPED} {unknown:,} of {images:,} images"


def stamps_of(sentences: Sequence[str]) -> tuple[str, ...]:
    """Return the stamps of caveats, without repetition."""
    return tuple(dict.fromkeys(text.partition(":")[0] for text in sentences))


def stamped(notes: Sequence[str]) -> tuple[str, ...]:
    """Return the notes of a record that begin with a stamp of its images."""
    return tuple(note for note in notes if note.partition(":")[0].partition(" ")[0] in IMAGE_STAMPS)


def uses_split(run: Run, study: Study, split: Split) -> tuple[str, ...]:
    """Record a split as an input of the run and add its stamps to the run's tables; return its caveats."""
    sentences = caveats(split, study.read_split_record().group_rules)
    run.uses("split.csv", split.sha256)
    run.stamped(stamps_of(sentences))
    return sentences


def _in_several(keys: npt.NDArray[np.str_], parts: npt.NDArray[np.str_]) -> tuple[int, int]:
    """Return how many keys occur in test and another part, and how many only in both train and val."""
    import numpy as np
    import pandas as pd

    key = pd.factorize(keys.astype(object))[0].astype(np.int64)
    n = int(key.max(initial=-1)) + 1
    occurs = {part: np.bincount(key[parts == part], minlength=n) > 0 for part in SPLITS}
    elsewhere = occurs[TRAIN] | occurs[VAL]
    return int((occurs[TEST] & elsewhere).sum()), int((occurs[TRAIN] & occurs[VAL] & ~occurs[TEST]).sum())


def _are(n: int, thing: str) -> str:
    return f"{counted(n, thing)} {'is' if n == 1 else 'are'}"


def caveat(model: str, finding: str) -> str:
    """Return the caveat, with its stamp, that a model is not shown to have learned anything."""
    return (
        f"{UNPROVEN}: {model} is not shown to have learned anything ({finding}). A comparison with it cannot show "
        "what compression costs. Train again, or with more images."
    )
