"""Predictions as DICOM objects that a picture archive (PACS) shows with the image: a report and a marked picture.

Imports the rooms below, `core` to `data`, and `pictures`.
"""

__all__ = ["results"]
