"""Detection of images that look unlike a study's training images, by statistics stored in the study.

Imports `data.images`, `data.scanning` and `data.streams` and the rooms below, but no network, so that all variants give
the same warnings under every runtime.
"""

__all__ = ["rule", "stored"]
