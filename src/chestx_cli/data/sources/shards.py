"""Tar shards in the layout of WebDataset: files with the same key (the name up to its first dot) form a sample.

Shards are indexed here, once, in the order of their names: headers, labels and the position of each image's bytes.
Images are read later at these positions (`images/places`); nothing is unpacked.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from chestx_cli.core.errors import DataError
from chestx_cli.core.files import read_head, read_span
from chestx_cli.core.printable import printable
from chestx_cli.data.images.decoding import SUFFIXES
from chestx_cli.data.images.places import divided_path
from chestx_cli.data.sources.layouts import DIVIDE_AGAIN, OUTSIDE
from chestx_cli.data.sources.names import part_of
from chestx_cli.records.split import TEST, TRAIN, VAL

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from tarfile import TarFile, TarInfo

    import numpy as np
    import numpy.typing as npt

    from chestx_cli.data.sources.folders import Folder

SHARD_SUFFIX = ".tar"
NO_IMAGE = "member of a shard that is no image"
_LABEL_SUFFIXES = {".cls", ".json"}
_MAX_LABEL_BYTES = 2**20
_BLOCK = tarfile.BLOCKSIZE
_IMAGES = frozenset(suffix[1:] for suffix in SUFFIXES)
# Optional fields of a sample's JSON besides the label, and their keys.
_MORE = {"group": ("group", "patient"), "sha256": ("sha256",)}
_AGAIN = "copy it again from where it was made, or make it again"
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\xfd7zXZ": "xz", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(kw_only=True)
class ShardImages:
    """The images of shards: paths such as `a.tar/b.png`, labels, further fields of each sample's JSON, and positions.

    `parts`: parts of the split by shard name; None if the images are to be divided.
    """

    layout: str = "tar shards"
    paths: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    parts: tuple[str, ...] | None = None
    more: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in _MORE})
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    sifted: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def spans(self) -> npt.NDArray[np.int64]:
        """Return offset and size [N, 2] of each image in its shard."""
        import numpy as np

        return np.array([self.offsets, self.sizes], dtype=np.int64).T.copy()

    def column(self, name: str) -> tuple[str, ...] | None:
        """Return a field of the JSON of all samples; None if no sample has it; raises DataError if only some do."""
        values = self.more[name]
        if not any(values):
            return None
        if "" in values:
            lacking = printable(self.paths[values.index("")])
            raise DataError(
                f"{lacking} has no {name} in its JSON, where other samples have one",
                "add it to all, or to none",
            )
        return tuple(values)


@dataclass(kw_only=True)
class _Sample:
    """The members with one key: the image, and the content of its label files."""

    image: TarInfo | None = None
    cls_label: str | None = None
    json_fields: dict[str, str] = field(default_factory=dict)


def shards_in(root: Folder) -> list[str]:
    """Return the tar shards of a folder without images, as paths relative to it, sorted by name."""
    if root.has_images:
        return []
    return [
        f"{folder.name}/{entry}" if folder.name else entry
        for folder in root.below()
        for entry in folder.entries
        if isinstance(entry, str) and PurePosixPath(entry).suffix.lower() == SHARD_SUFFIX
    ]


def read_shards(data: Path, shards: Sequence[str], *, resplit: bool) -> ShardImages:
    """Return the labelled images of shards in stored order; raises DataError.

    A split given by shard names is kept, unless the images are to be divided again (`resplit`).
    """
    images = ShardImages()
    parts = _parts_of(data, shards, resplit=resplit)
    drawn: list[str] = []
    for shard in shards:
        before = len(images.paths)
        _take_shard(data, shard, images)
        if parts is not None:
            drawn += [parts[shard]] * (len(images.paths) - before)
    if parts is not None:
        images.parts = tuple(drawn)
        images.layout = "tar shards of parts, kept as they are" + ("" if VAL in drawn else "; val drawn from train")
    return images


def members_of(folder: Path, shards: Sequence[str]) -> tuple[tuple[str, ...], npt.NDArray[np.int64], Counter[str]]:
    """Return paths below the folder, offset and size [N, 2] of all images of shards, without labels; raises DataError.

    The third value counts other members that are no label files, by reason.
    """
    import numpy as np

    names: list[str] = []
    spans: list[tuple[int, int]] = []
    others: Counter[str] = Counter()
    for shard in shards:
        with _opened(folder / shard) as tar:
            for name, member in _files_of(folder / shard, tar):
                suffix = PurePosixPath(name).suffix.lower()
                if suffix in SUFFIXES:
                    names.append(f"{shard}/{name}")
                    spans.append((member.offset_data, member.size))
                elif suffix not in _LABEL_SUFFIXES:
                    others[NO_IMAGE] += 1
    return tuple(names), np.array(spans, dtype=np.int64).reshape(-1, 2), others


def spans_of(folder: Path, paths: Sequence[str]) -> npt.NDArray[np.int64] | None:
    """Return offset and size [N, 2] of a table's images in shards, negative for other images; None without shards.

    Raises DataError if a shard cannot be read or lacks an image.
    """
    import numpy as np

    rows_of: dict[str, dict[str, int]] = {}
    for row, path in enumerate(paths):
        inside = divided_path(path)
        if inside is not None:
            rows_of.setdefault(inside[0], {})[inside[1]] = row
    rows_of = {shard: rows for shard, rows in rows_of.items() if not (folder / shard).is_dir()}
    if not rows_of:
        return None
    spans = np.full((len(paths), 2), -1, dtype=np.int64)
    for shard, rows in rows_of.items():
        with _opened(folder / shard) as tar:
            for name, member in _files_of(folder / shard, tar):
                if name in rows:
                    spans[rows.pop(name)] = member.offset_data, member.size
        if rows:
            counted = f"{len(rows):,} listed images, such as " if len(rows) > 1 else ""
            raise DataError(
                f"shard {folder / shard} lacks {counted}{printable(next(iter(rows)))}",
                "correct the table, or the names in the shard",
            )
    return spans


def _parts_of(data: Path, shards: Sequence[str], *, resplit: bool) -> dict[str, str] | None:
    """Return the part of a split that each shard's name or folder names; None if none names one."""
    part_by_shard = {
        shard: next(filter(None, map(part_of, (Path(shard).stem, *Path(shard).parts[:-1]))), "") for shard in shards
    }
    if not any(part_by_shard.values()):
        return None
    if resplit:
        return None
    without = next((shard for shard, part in part_by_shard.items() if not part), None)
    missing = [part for part in (TRAIN, TEST) if part not in part_by_shard.values()]
    if without is not None or missing:
        fact = f"{printable(without)} is of no part" if without else f"none is of {' and none of '.join(missing)}"
        raise DataError(
            f"shards in {data} are named as parts of a split, but {fact}",
            f"name all after train, val or test, as train-0001.tar; or {DIVIDE_AGAIN}",
        )
    return part_by_shard


def _take_shard(data: Path, shard: str, images: ShardImages) -> None:
    path = data / shard
    samples: dict[str, _Sample] = {}
    with _opened(path) as tar:
        for name, member in _files_of(path, tar):
            key, ending = _key_of(name)
            sample = samples.setdefault(key, _Sample())
            if ending in _IMAGES:
                if sample.image is not None:
                    two = f"{printable(_name_of(sample.image))} and {printable(name)}"
                    raise DataError(
                        f"shard {path} has two images of the key {printable(key)}: {two}",
                        "remove one of them, or give each a key of its own: the name up to its first dot",
                    )
                sample.image = member
            elif ending == "cls":
                sample.cls_label = _text(path, tar, name, member)
            elif ending == "json":
                sample.json_fields = _fields(path, name, _text(path, tar, name, member))
            else:
                images.sifted[OUTSIDE, NO_IMAGE] += 1
    for key, sample in samples.items():
        if sample.image is None:
            if sample.cls_label is not None:
                raise DataError(
                    f"shard {path} has a label of the key {printable(key)}, and no image",
                    "add its image, or remove the label; a name that has a dot in its key is not read as "
                    "WebDataset reads it: list such images in a manifest (path,label), as SHARD.tar/NAME",
                )
            continue
        images.paths.append(f"{shard}/{_name_of(sample.image)}")
        images.labels.append(_label_of(path, key, sample))
        images.offsets.append(sample.image.offset_data)
        images.sizes.append(sample.image.size)
        for name, values in images.more.items():
            values.append(sample.json_fields.get(name, ""))


def _label_of(path: Path, key: str, sample: _Sample) -> str:
    labels = [label for label in (sample.cls_label, sample.json_fields.get("label")) if label]
    if not labels:
        raise DataError(
            f"shard {path} has no label of the key {printable(key)}",
            f'add {key}.cls with its class, or {key}.json as {{"label": "...", "patient": "..."}}; or list the images '
            "in a manifest (path,label), as SHARD.tar/NAME",
        )
    if labels[0] != labels[-1]:
        raise DataError(
            f"shard {path} has two labels of the key {printable(key)}: {' and '.join(map(printable, labels))}",
            "correct one of them",
        )
    return labels[0]


@contextmanager
def _opened(path: Path) -> Iterator[TarFile]:
    """Open a shard; after all members were read, check that it is complete; raises DataError."""
    try:
        # `read_head` refuses a pipe, on which tarfile would block.
        head = read_head(path, _BLOCK)
        if kind := next((kind for mark, kind in _COMPRESSED.items() if head.startswith(mark)), None):
            raise DataError(
                f"shard {path} is compressed ({kind})", "decompress it: images are read at their places in the shard"
            )
        with tarfile.open(path, "r:") as tar:
            yield tar
            # tarfile interprets any invalid header, and the end of a truncated file, as the end of the archive.
            if read_span(path, tar.offset, _BLOCK) != bytes(_BLOCK):
                raise tarfile.ReadError("no end")
    except OSError as error:
        raise DataError(f"cannot read shard {path}: {error.strerror or error}", _AGAIN) from error
    except tarfile.TarError as error:
        raise DataError(f"shard {path} is cut off or damaged, or is no tar file", _AGAIN) from error


def _files_of(path: Path, tar: TarFile) -> Iterator[tuple[str, TarInfo]]:
    """Yield the visible files of a shard, each with its normalised name; raises DataError for unusable members."""
    seen = set()
    for member in tar:
        name = _name_of(member)
        if member.isdir() or PurePosixPath(name).name.startswith((".", "__")):
            continue
        wrong = _what_is_wrong(name, member, again=name in seen)
        if wrong:
            raise DataError(
                f"shard {path} has a member {printable(member.name)} that {wrong}", "make the shard again without it"
            )
        seen.add(name)
        yield name, member


def _what_is_wrong(name: str, member: TarInfo, *, again: bool) -> str:
    if not member.isreg() or member.issparse():
        return "is a link or no plain file"
    if member.name.startswith(("/", "\\")) or ".." in PurePosixPath(name.replace("\\", "/")).parts:
        return "leads out of the shard"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "has a name that is not UTF-8"
    return "is there twice" if again else ""


def _name_of(member: TarInfo) -> str:
    return str(PurePosixPath(member.name))


def _key_of(name: str) -> tuple[str, str]:
    """Return the key of a member, its name up to the first dot after the last slash, and its ending, the rest."""
    folder, slash, own = name.rpartition("/")
    key, _, ending = own.partition(".")
    return f"{folder}{slash}{key}", ending.lower()


def _text(path: Path, tar: TarFile, name: str, member: TarInfo) -> str:
    content = tar.extractfile(member) if member.size <= _MAX_LABEL_BYTES else None
    try:
        if content is not None:
            return content.read().decode().strip()
    except UnicodeDecodeError:
        pass
    raise DataError(f"{printable(name)} in shard {path} is no short text in UTF-8", "correct it")


def _fields(path: Path, name: str, text: str) -> dict[str, str]:
    """Return label, patient and hash from a sample's JSON, as text."""
    try:
        document: Any = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise DataError(
            f"{printable(name)} in shard {path} is no JSON object", 'write {"label": "...", "patient": "..."}'
        )
    fields = {}
    for field_name, keys in {"label": ("label",), **_MORE}.items():
        value = next((document[key] for key in keys if document.get(key) is not None), "")
        if isinstance(value, str | int):
            fields[field_name] = str(value).strip()
    return fields
