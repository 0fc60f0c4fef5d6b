"""Self-contained programs that chestx sends to a target device and that run only there.

Imports nothing of the package: these programs run without it.
"""
