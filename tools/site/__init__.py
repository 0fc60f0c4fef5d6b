"""The documentation site: what MkDocs gets besides the pages in docs/, and how its result is checked."""
