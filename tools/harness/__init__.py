"""Shared by all measurements: the machine, child processes, and the documents that hold results."""
