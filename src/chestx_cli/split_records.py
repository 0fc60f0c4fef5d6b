"""Values that the records of a split are made of."""

from __future__ import annotations

SPLITS = ("train", "val", "test")
# The rule of an image whose patient no rule knows.
UNMATCHED = "no rule: each image its own patient"
