"""Values that the records of a split are made of."""

from __future__ import annotations

TRAIN, VAL, TEST = "train", "val", "test"
SPLITS = (TRAIN, VAL, TEST)
# The rule of an image whose patient no rule knows.
UNMATCHED = "no rule: each image its own patient"
