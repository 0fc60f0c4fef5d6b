"""Self-contained programs that run on a target device without chestx, and how what they read images with is made.

Imports nothing of the package: these programs run without it.
"""

__all__ = ["image_reader"]
