"""Whether an image looks like those that a study was trained on, by statistics that the study stores.

Imports `data.images`, `data.scanning` and `data.streams` and the rooms below, and no network: all variants, under every
runtime, give the same warnings.
"""

__all__ = ["rule", "stored"]
