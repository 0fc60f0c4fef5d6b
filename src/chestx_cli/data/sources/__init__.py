"""Sources of images: folders and tables, interpreted by the names and labels of public data sets.

Imports `core`, `records` and `store`, and of `data` the files of `images`.
"""

__all__ = [
    "label_tables",
    "layouts",
    "listing",
    "manifest_files",
    "names",
    "patients",
    "positives",
    "pseudonyms",
    "unlabelled",
]
