"""Images of a set scanned, compared, audited and divided by patient.

Imports `core`, `records` and `study`; not `evaluation`.
"""
