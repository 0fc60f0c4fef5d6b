"""Programs that run on the target device, from nothing but their own file; chestx sends them there, never runs them.

Imports nothing of the package: these files leave it.
"""
