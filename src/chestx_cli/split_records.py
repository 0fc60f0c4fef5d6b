"""Values that the records of a split are made of."""

from __future__ import annotations

SPLITS = ("train", "val", "test")
