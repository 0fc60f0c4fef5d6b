"""What every command needs: errors, files, signals, options, records, worker processes.

Imports nothing of the package, and of libraries the standard one alone.
"""
