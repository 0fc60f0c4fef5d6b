"""Pictures of one prediction: heatmaps, and text drawn in images.

Imports the rooms below: `core` to `networks`.
"""

__all__ = ["captions", "heatmaps"]
