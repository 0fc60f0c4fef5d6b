"""The documentation site: generated pages besides those in docs/, and checks of the result."""
