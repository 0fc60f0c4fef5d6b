"""Models as functions from images to logits: exported, run, timed, bundled, sent to a device.

Imports the rooms below: `core` to `networks`.
"""
