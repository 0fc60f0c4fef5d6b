"""Self-contained programs that run on a target device without chestx, and the generator of the module that reads images.

Imports nothing of the package: these programs run without it.
"""

__all__ = ["image_reader"]
