"""Predictions as DICOM objects that a picture archive (PACS) shows beside the film: a report and a marked picture.

Imports the rooms below: `core` to `data`.
"""

__all__ = ["results"]
