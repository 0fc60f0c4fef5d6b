"""Self-contained programs that run on a target device without chestx, and the generator of their image reader.

Imports nothing of the package: these programs run without it.
"""

__all__ = ["image_reader"]
