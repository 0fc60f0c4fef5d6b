"""Zeros and removed channels, and what each layer bears.

Imports what `compression` imports; not `quantization`.
"""
