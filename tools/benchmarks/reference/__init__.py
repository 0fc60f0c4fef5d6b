"""Reference implementations: the same work without chestx."""
