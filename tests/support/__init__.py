"""Shared support: made-up studies, an ssh server, and a tiny backbone."""
