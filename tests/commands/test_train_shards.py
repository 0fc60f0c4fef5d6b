"""Training and evaluation on tar shards: same results as from folders, bounded memory, resumption."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from chestx_cli.store import checkpoints
from conftest import IMAGE_SIZE_PX, TINY, Chestx
from support.shards import write_shards, write_tar

FIT = (*TINY, "--epochs", "2", "--batch-size", "8")
SIZE = ("--image-size", IMAGE_SIZE_PX)
BUFFER = ("--shuffle-buffer", "16")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return write_shards(data, tmp_path_factory.mktemp("shards") / "shards")


@pytest.fixture(scope="module")
def unopened(shards: Path, data: Path) -> Path:
    """Return a manifest beside the shards by which they are divided without being opened."""
    rows = []
    for number, file in enumerate(sorted(data.rglob("*.png"))):
        rows.append(
            {
                "path": f"films-{number // 16:04d}.tar/{file.name}",
                "label": file.parent.name,
                "group": file.stem.rpartition("-" if file.stem.startswith("IM") else "_virus")[0],
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            }
        )
    pd.DataFrame(rows).to_csv(shards / "films.csv", index=False)
    return shards / "films.csv"


def record(study: Path, name: str = "baseline") -> dict[str, Any]:
    document: dict[str, Any] = json.loads((study / "variants" / name / "variant.json").read_text())
    return document


def predictions(study: Path, evaluation: str = "test") -> pd.DataFrame:
    path = study / "variants" / "baseline" / f"predictions.{evaluation}.csv"
    return pd.read_csv(path).set_index("image_id").sort_index()


def test_shards_give_the_model_and_the_probabilities_of_their_folder(
    shards: Path, data: Path, chestx: Chestx, tmp_path: Path
) -> None:
    for name, source in (("folder", data), ("shards", shards)):
        trained = chestx("train", source, "--study", tmp_path / name, *FIT)
        assert trained.code == 0, trained.err
        assert chestx("evaluate", "--study", tmp_path / name).code == 0
    a, b = (record(tmp_path / name) for name in ("folder", "shards"))
    assert a["model_sha256"] == b["model_sha256"]
    pd.testing.assert_frame_equal(predictions(tmp_path / "folder"), predictions(tmp_path / "shards"), check_exact=True)


def test_new_images_may_be_shards_too(
    shards: Path, unopened: Path, data: Path, chestx: Chestx, finished: Path, tmp_path: Path
) -> None:
    study = Path(shutil.copytree(finished, tmp_path / "study"))

    def probabilities(source: Path, *more: object) -> dict[str, float]:
        outcome = chestx("predict", source, "--study", study, "--variant", "baseline", "--show-paths", "--json", *more)
        assert outcome.code == 0, outcome.err
        return {Path(row["path"]).name: row["probability"]["PNEUMONIA"] for row in outcome.json()["rows"]}

    expected = probabilities(data)
    # As a folder, as single shards, and listed in a table.
    assert probabilities(shards) == expected
    assert probabilities(unopened) == expected
    first, *others = sorted(shards.glob("*.tar"))
    some = probabilities(first)
    assert some == {name: expected[name] for name in some}
    assert 0 < len(some) < len(expected)
    csv = tmp_path / "p.csv"
    assert chestx("predict", first, "--study", study, "--variant", "baseline", "--csv", csv).code == 0
    outcome = chestx("predict", shards, "--study", study, "--variant", "baseline", "--csv", csv, "--json")
    assert outcome.json()["resumed"] == len(some)
    written = pd.read_csv(csv)
    assert {Path(path).name for path in written["path"]} == set(expected)
    assert str(others[-1]) in written["path"].iloc[-1]


def test_a_shard_without_images_is_named(chestx: Chestx, finished: Path, tmp_path: Path) -> None:
    empty = write_tar(tmp_path / "a.tar", [("a.txt", b"a"), ("b.cls", b"NORMAL")])
    outcome = chestx("predict", empty, "--study", finished, "--variant", "baseline")
    assert outcome.code == 1
    assert "no images in" in outcome.err
    assert "1 × member of a shard that is no image" in " ".join(outcome.err.split())


def test_images_of_another_set_may_be_shards_too(
    shards: Path, data: Path, chestx: Chestx, finished: Path, tmp_path: Path
) -> None:
    study = Path(shutil.copytree(finished, tmp_path / "study"))
    tables = {}
    for name, source in (("folder", data), ("shards", shards)):
        words = ("evaluate", "baseline", "--study", study, "--data", source, "--name", name, "--allow-leakage")
        outcome = chestx(*words)
        assert outcome.code == 0, outcome.err
        tables[name] = pd.read_csv(study / "variants" / "baseline" / f"predictions.{name}.csv")
    assert len(tables["folder"]) == 60
    assert tables["folder"]["probability"].tolist() == tables["shards"]["probability"].tolist()


def test_shards_that_were_never_opened_are_decoded_as_they_are_read_and_not_kept(
    unopened: Path, chestx: Chestx, tmp_path: Path
) -> None:
    opened, streamed = tmp_path / "opened", tmp_path / "streamed"
    assert chestx("split", unopened, "--study", opened, *SIZE).code == 0
    assert chestx("split", unopened, "--study", streamed, "--unread", *SIZE).code == 0
    for study in (opened, streamed):
        trained = chestx("train", "--study", study, *FIT, *BUFFER)
        assert trained.code == 0, trained.err
        for words in (("evaluate",), ("quantize", "--method", "static"), ("sensitivity", "--amounts", "0.5")):
            outcome = chestx(*words, "--study", study)
            assert outcome.code == 0, outcome.err
    assert record(opened)["model_sha256"] == record(streamed)["model_sha256"]
    assert record(opened)["options"]["shuffle_buffer"] == 16
    assert predictions(opened)["probability"].tolist() == predictions(streamed)["probability"].tolist()
    assert list((opened / "cache").glob("pixels-*"))
    assert not list((streamed / "cache").glob("pixels-*")), "nothing is kept of them"
    other = chestx("train", "--study", opened, *FIT, "--shuffle-buffer", "24")
    assert other.code == 1
    assert "shuffle_buffer: 16 -> 24" in other.err


def test_a_training_in_order_goes_on_bit_for_bit(
    unopened: Path, chestx: Chestx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chestx("split", unopened, "--study", tmp_path, "--unread", *SIZE).code == 0
    words = ("train", "--study", tmp_path, *FIT, *BUFFER)
    assert chestx(*words, "--name", "whole").code == 0

    class Killed(BaseException):
        """Ends a command where no code of its own can react."""

    real = checkpoints.Checkpoints._write

    def write_then_die(self: checkpoints.Checkpoints, fit: str, snapshot: checkpoints.Snapshot) -> None:
        real(self, fit, snapshot)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "_write", write_then_die)
        with pytest.raises(Killed):
            chestx(*words, "--checkpoint-every", "3")
    again = chestx(*words, "--checkpoint-every", "3")
    assert "resuming after epoch 0 and 3 steps" in again.err
    assert record(tmp_path)["model_sha256"] == record(tmp_path, "whole")["model_sha256"]


def test_a_member_that_has_changed_ends_the_training_with_its_id(
    unopened: Path, shards: Path, chestx: Chestx, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    assert chestx("split", copy / unopened.name, "--study", tmp_path / "study", "--unread", *SIZE).code == 0
    shard = copy / "films-0001.tar"
    content = bytearray(shard.read_bytes())
    for at in range(600, len(content) - 2048, 512):
        content[at] ^= 255
    shard.write_bytes(content)
    outcome = chestx("train", "--study", tmp_path / "study", *FIT, *BUFFER)
    assert outcome.code == 1
    assert "image img-0000" in outcome.err
    assert "chestx split DATA --force" in " ".join(outcome.err.split())


@pytest.mark.slow
def test_two_processes_train_on_parts_of_the_shards(unopened: Path, chestx: Chestx, tmp_path: Path) -> None:
    assert chestx("split", unopened, "--study", tmp_path, "--unread", *SIZE).code == 0
    words = ("--study", str(tmp_path), *FIT, *BUFFER, "--sync-batchnorm")
    together = subprocess.run(
        [sys.executable, "-m", "chestx_cli", "train", *words, "--processes", "2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert together.returncode == 0, together.stderr
    assert record(tmp_path)["training"]["processes"] == 2
    assert record(tmp_path)["options"]["shuffled_parts"] == 2
    assert not list((tmp_path / "cache").glob("pixels-*"))
    alone = chestx("train", "--study", tmp_path, *FIT, *BUFFER)
    assert alone.code == 1
    assert "shuffled_parts: 2 -> 1" in alone.err
