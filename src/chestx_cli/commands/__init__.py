"""The commands, one function in one file each: options and orchestration.

Imports every room below. No room imports it: the package knows commands by name, from the generated `command_table`.
"""
