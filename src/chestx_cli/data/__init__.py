"""Images of a set scanned, compared, audited and divided by patient.

Imports `core`, `records` and `store`; not `evaluation`.
"""

__all__ = [
    "audit",
    "differing_images",
    "dividing",
    "duplicates",
    "facts",
    "film_audit",
    "overlap",
    "scanning",
    "shortcuts",
    "split_tables",
    "streams",
    "value_range",
]
