"""Images with patient identifiers in paths, tables and metadata, and the search for these identifiers."""

from __future__ import annotations

import base64
import csv
import functools
import hashlib
import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from chestx_cli.data.synthetic.sets import write_synthetic_set

CLASSES = ("NORMAL", "PNEUMONIA")
# In columns, tags and metadata: they must not be found anywhere.
PATIENTS = {
    "group column": "Okonkwo^Ngozi",
    "number in the group column": "MRN-90817263",
    "another column": "HN-31415926",
    "PatientID": "PID-55501234",
    "PatientName": "Featherstone^Quill",
    "PatientBirthDate": "29-02-63-Tuesday",
    "AccessionNumber": "ACC7788123",
    "EXIF artist": "Zubrowka-Ilse",
    "PNG text": "Tilda Wolkenstein",
}
# Part of the image paths: only files that stay with the data may contain them.
PATHS = {
    "file name": "Quintus_Abernathy_1957",
    "folder of a patient": "ward7-Marlowe-Dunmore",
    "data folder": "Ravenscroft-family",
}
PLANTED = {**PATIENTS, **PATHS}
# Matches the patient in the file name, which makes it a patient key.
REGEX = r"([A-Z][a-z]+_[A-Z][a-z]+_\d{4})"
# No image id has a larger number appended; hashes are searched by this many digits.
MOST_NUMBERED, HASH_DIGITS = 100, 16
# Files that stay with the data.
PRIVATE = re.compile(r"(split|images[.][\w-]+)[.]csv|(split|folds)[.]json|[.]split[.]json[.]next")


@dataclass(frozen=True, kw_only=True)
class Hospital:
    """A folder of images with a table of patients, and a manifest of the same images."""

    data: Path
    groups: Path
    manifest: Path


def write_hospital(folder: Path, *, images: int, side_px: int, seed: int) -> Hospital:
    """Write a set with every identifier planted on several images."""
    data = folder / PATHS["data folder"]
    write_synthetic_set(data, images=images, seed=seed, size_px=side_px)
    for notice in data.glob("*.txt"):
        notice.unlink()
    files = []
    for number, path in enumerate(sorted(data.rglob("*.png"))):
        files.append(_plant(path, number))
    rows = []
    for number, path in enumerate(files):
        inside = path.relative_to(data).as_posix()
        rows.append(
            (inside, path.parent.name, _group(number), ("f", "m")[number % 2], f"{PATIENTS['another column']}-{number}")
        )
    groups, manifest = data / "groups.csv", data / "manifest.csv"
    _write(groups, ("path", "group"), [(path, group) for path, _, group, _, _ in rows if not path.endswith(".dcm")])
    labelled = [(path, path.split("/")[0], *more) for path, _, *more in rows]
    _write(manifest, ("path", "label", "group", "sex", "mrn"), labelled)
    return Hospital(data=data, groups=groups, manifest=manifest)


def _group(number: int) -> str:
    name = ("group column", "number in the group column")[number % 2]
    return f"{PATIENTS[name]}-{number // 4}"


def _plant(path: Path, number: int) -> Path:
    """Give an image a path and a format that contain identifiers; return its new path."""
    grey = Image.open(path).convert("L")
    path.unlink()
    kind = number % 5
    name = f"{PATHS['file name']}-{number}" if kind < 2 else f"{number:05d}"
    folder = path.parent / f"{PATHS['folder of a patient']}-{number}" if kind in (2, 3) else path.parent
    folder.mkdir(exist_ok=True)
    if kind in (0, 3):
        exif = Image.Exif()
        exif[0x013B], exif[0x010E] = PATIENTS["EXIF artist"], PATIENTS["EXIF artist"]
        copy = folder / f"{name}.jpg"
        grey.save(copy, quality=95, exif=exif)
    elif kind in (1, 2):
        text = PngImagePlugin.PngInfo()
        text.add_text("Comment", PATIENTS["PNG text"])
        text.add_text("Title", PATIENTS["PNG text"], zip=True)
        copy = folder / f"{name}.png"
        grey.save(copy, pnginfo=text)
    else:
        copy = folder / f"{name}.dcm"
        _write_dicom(copy, np.asarray(grey), number)
    return copy


def _write_dicom(path: Path, pixels: np.ndarray, number: int) -> None:
    import warnings

    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    about = FileMetaDataset()
    about.TransferSyntaxUID = ExplicitVRLittleEndian
    about.MediaStorageSOPClassUID, about.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    with warnings.catch_warnings():
        # An invalid date: a library's message about it must not reveal it.
        warnings.simplefilter("ignore")
        dataset = FileDataset(str(path), {}, file_meta=about, preamble=b"\0" * 128)
        dataset.PatientID, dataset.PatientName = f"{PATIENTS['PatientID']}-{number // 10}", PATIENTS["PatientName"]
        dataset.PatientBirthDate, dataset.AccessionNumber = PATIENTS["PatientBirthDate"], PATIENTS["AccessionNumber"]
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit, dataset.PixelRepresentation = 7, 0
        dataset.PixelData = pixels.tobytes()
        dataset.save_as(path, enforce_file_format=True)


def _write(path: Path, heading: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(heading)
        writer.writerows(rows)


def found_in(content: bytes, planted: dict[str, str]) -> set[str]:
    """Return the identifiers that content reveals: verbatim, in other case, as unsalted hashes, or inside pictures."""
    searched = content.lower()
    for data_uri in re.findall(rb"data:image/[\w+]+;base64,([A-Za-z0-9+/=]+)", content):
        searched += _unpacked(base64.b64decode(data_uri))
    searched += _unpacked(content)
    hashes = {digits.decode() for digits in re.findall(rb"(?<![0-9a-f])[0-9a-f]{%d}" % HASH_DIGITS, searched)}
    return {
        name
        for name, text in planted.items()
        if any(form in searched for form in _forms(text)) or not hashes.isdisjoint(_hashes(text))
    }


def _unpacked(content: bytes) -> bytes:
    """Return the text and metadata of a picture, and the text of an SVG."""
    if not content.startswith(b"\x89PNG"):
        return content.lower() if b"<svg" in content[:2000] else b""
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        return repr((dict(image.info), dict(image.getexif()))).encode().lower()


@functools.cache
def _forms(text: str) -> tuple[bytes, ...]:
    spellings = [text, text.replace("^", " "), text.replace("^", "\\u005e"), text.replace("_", "\\_")]
    forms = [form.lower().encode() for form in spellings]
    return (*forms, text.lower().encode("utf-16-le"), base64.b64encode(text.encode())[:-4].lower())


@functools.cache
def _hashes(text: str) -> frozenset[str]:
    """Return prefixes of an identifier's unsalted hashes, also of the identifier followed by a number."""
    forms = [text, *(f"{text}-{number}" for number in range(MOST_NUMBERED))]
    forms += [f"dicom-{form}" for form in forms]
    forms += [form.lower() for form in forms]
    kinds = (hashlib.md5, hashlib.sha1, hashlib.sha256, hashlib.blake2b, _short_blake2b)
    return frozenset(kind(form.encode()).hexdigest()[:HASH_DIGITS] for form in forms for kind in kinds)


def _short_blake2b(content: bytes) -> hashlib.blake2b:
    return hashlib.blake2b(content, digest_size=HASH_DIGITS // 2)


def revealed_in(study: Path) -> dict[str, set[str]]:
    """Return the identifiers that files of a study reveal, by path; those of paths only outside private files."""
    revealed = {}
    for path in sorted(study.rglob("*")):
        if not path.is_file():
            continue
        inside = str(path.relative_to(study))
        private = PRIVATE.fullmatch(path.name) is not None and "variants" not in path.parts
        identifiers = found_in(path.read_bytes(), PATIENTS if private else PLANTED) | found_in(inside.encode(), PLANTED)
        if identifiers:
            revealed[inside] = identifiers
    return revealed
