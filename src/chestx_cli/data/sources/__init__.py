"""What users give: folders and tables of images, read with the words and labels of other people's sets.

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
