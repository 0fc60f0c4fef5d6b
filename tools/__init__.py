"""Measurements that take longer than tests; nothing of it is shipped, and the package imports none of it."""
