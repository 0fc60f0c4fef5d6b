"""The shard benchmark: every reader reads every image once, and memory is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.benchmarks import shards

IMAGES, SIDE_PX = 60, 32


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a folder of shards, and a study that has divided them without opening an image."""
    work = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SAMPLES", 25)
        manifest = shards.write_shards(work / "shards", IMAGES, 48)
    taken = shards.split_unread(manifest, work / "study")
    assert taken["peak_mb"] > 0
    return work / "shards", work / "study"


@pytest.mark.parametrize("reader", [name for name in shards.available() if "workers" not in name])
def test_every_reader_reads_every_image(reader: str, made: tuple[Path, Path]) -> None:
    cost = shards.measured(shards.READERS[reader](*made, SIDE_PX), IMAGES)
    assert cost.images == IMAGES
    assert len(cost.memory_mb) > 0
    assert len(list(made[0].glob("*.tar"))) == 3
