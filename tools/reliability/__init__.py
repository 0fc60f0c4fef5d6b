"""Figures of reliability: what crashes, hostile files, races and curious neighbours do to a study."""
