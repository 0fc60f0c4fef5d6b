"""The bytes of one image file as grey pixels, with a reason for every refusal.

Imports `core` and `records`.
"""

__all__ = ["dicom", "rasters", "readings", "refusals"]
