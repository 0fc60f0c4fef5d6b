"""Tar shards in WebDataset's layout, built from folders of images and from unusual members."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """Write files of these names and contents as one tar file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_shards(source: Path, shards: Path, *, size: int = 16, as_json: bool = False, name: str = "films") -> Path:
    """Write the images of class folders as shards of `size` samples in the order of names, labels beside them."""
    samples = [(path, path.parent.name) for path in sorted(source.rglob("*.png"))]
    for first in range(0, len(samples), size):
        members: list[tuple[str, bytes]] = []
        for path, label in samples[first : first + size]:
            members.append((path.name, path.read_bytes()))
            if as_json:
                said: Mapping[str, object] = {"label": label, "patient": path.stem.split("_")[0]}
                members.append((f"{path.stem}.json", json.dumps(said).encode()))
            else:
                members.append((f"{path.stem}.cls", f"{label}\n".encode()))
        write_tar(shards / f"{name}-{first // size:04d}.tar", members)
    return shards
