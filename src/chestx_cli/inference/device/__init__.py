"""Self-contained programs that run on a target device without chestx, and the generator of their DICOM module.

Imports nothing of the package: these programs run without it.
"""

__all__ = ["dicom_reader"]
