"""Networks in 8 bits.

Imports what `compression` imports, and of `pruning` the measure of sensitivity.
"""
