"""Image files found by their content, decoded, and the cache of their pixels; `formats/` reads the bytes of one.

Imports nothing of the rest of `data`.
"""

__all__ = ["decoding", "films", "pixel_cache", "places", "sniffing"]
