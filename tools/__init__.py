"""Measurements that take longer than tests. They are not shipped, and the package imports none of them."""
