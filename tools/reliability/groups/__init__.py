"""One module is one group: its name chooses it, its `measure(setting)` returns its figures. Nothing else lists it."""
