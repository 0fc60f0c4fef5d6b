"""Reliability tests: the effect of crashes, hostile files, races and privacy leaks on a study."""
