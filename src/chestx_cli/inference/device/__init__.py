"""Self-contained programs that chestx sends to a target device and that run only there.

They must not import the package, because they run without it.
"""
