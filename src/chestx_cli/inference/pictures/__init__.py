"""What is drawn of one prediction: heatmaps, and text in pictures.

Imports the rooms below: `core` to `networks`.
"""

__all__ = ["captions", "heatmaps"]
