"""The peers: the same work without chestx."""
