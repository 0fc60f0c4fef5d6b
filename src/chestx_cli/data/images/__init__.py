"""Image files decoded, with a reason for every refusal, and the cache of their pixels.

Imports nothing of the rest of `data`.
"""

__all__ = ["decoding", "dicom", "films", "pixel_cache", "places", "rasters", "readings", "refusals", "sniffing"]
