"""One module per group: its name selects it, and its `measure(setting)` returns the results. There is no other list."""
