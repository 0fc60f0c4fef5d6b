"""The documentation site: what MkDocs is given besides the pages in docs/, and what is checked of its result."""
