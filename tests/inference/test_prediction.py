"""Streaming prediction of files: results as through the study's cache, in order, with refusals counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from chestx_cli.core.progress import SilentReporter
from chestx_cli.inference.prediction import open_model, predict_files, predict_split
from chestx_cli.records.variant import BASELINE
from chestx_cli.store.directory import Study


def test_files_and_the_cache_give_the_same_probabilities(finished: Path) -> None:
    study = Study(finished)
    split = study.read_split()
    record = study.read_variant(BASELINE)
    rows = np.arange(len(split.ids))
    cached = predict_split(study, split, record, rows, SilentReporter(), threads=1)
    counted: list[int] = []
    files = [split.root / path for path in split.paths]
    streamed = predict_files(open_model(study, record, 1), record.preprocessing, files, counted.append)
    np.testing.assert_array_equal(streamed.probabilities, cached)
    assert [fact.sha256 for fact in streamed.facts] == split.image_sha256.tolist()
    assert sum(counted) == len(files)


def test_unreadable_files_are_named_with_their_row_and_reason(finished: Path, tmp_path: Path) -> None:
    study = Study(finished)
    split = study.read_split()
    record = study.read_variant(BASELINE)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    files = [broken, split.root / split.paths[0], tmp_path / "absent.png"]
    found = predict_files(open_model(study, record, 1), record.preprocessing, files, lambda _n: None)
    assert found.rows.tolist() == [1]
    assert found.probabilities.shape == (1, 2)
    assert set(found.refused) == {0, 2}
    assert found.refused[0].fact == "wrong-format: not a PNG, JPEG, BMP, TIFF or WebP image"
