"""State of a study after a failed write, a killed command, or concurrent writing."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from chestx_cli.core import files
from chestx_cli.core.errors import StorageError, StudyError
from chestx_cli.core.files import folder_appears_whole, storage_error, write_atomic
from chestx_cli.inference import thresholds
from chestx_cli.reporting.page import writing
from chestx_cli.store import locks
from chestx_cli.store.directory import Study
from chestx_cli.store.documents import write_record
from chestx_cli.store.locks import locked
from conftest import Chestx, no_space, tree


def test_a_split_that_cannot_be_written_leaves_nothing_of_itself(
    chestx: Chestx, study: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(study)
    real = write_atomic

    def full_at_the_manifest(path: Path, content: bytes | str) -> None:
        if path.name == "split.csv":
            raise storage_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), path)
        real(path, content)

    monkeypatch.setattr("chestx_cli.store.directory.write_atomic", full_at_the_manifest)
    outcome = chestx("split", data, "--study", study, "--seed", "7", "--force")
    assert outcome.code == 1
    assert "split.csv: No space left on device" in outcome.err
    after = tree(study)
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} <= {
        name for name in after if name.startswith((".locks/", "cache/"))
    }


def test_a_full_disk_while_building_a_variant_keeps_the_old_one(
    chestx: Chestx, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(study / "variants")
    monkeypatch.setattr(os, "fsync", no_space)
    outcome = chestx("prune", "--study", study, "--amount", "0.3", "--name", "oneshot-50", "--force")
    assert outcome.code == 1
    assert "No space left on device" in outcome.err
    assert "Traceback" not in outcome.err
    assert tree(study / "variants") == before


def test_a_refused_write_names_the_path_that_the_user_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StorageError) as refused, folder_appears_whole(tmp_path / "variant") as folder:
        write_atomic(folder / "model", "weights")
    assert f"{tmp_path / 'variant' / 'model'}:" in refused.value.fact
    with pytest.raises(StorageError) as refused, locked(tmp_path, "the split", "chestx split"):
        pass
    assert "the-split.json" in refused.value.fact
    monkeypatch.undo()
    with pytest.raises(StorageError) as refused, folder_appears_whole(tmp_path / "variant"):
        monkeypatch.setattr(os, "fsync", no_space)
    assert f"{tmp_path / 'variant'}:" in refused.value.fact
    # What the work under a lock runs into is no fault of the lock.
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError), locked(tmp_path, "the split", "chestx split"):
        (tmp_path / "missing").read_bytes()


def test_a_holder_that_has_not_yet_written_down_its_name_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ".locks"
    folder.mkdir()
    holder = json.dumps({"pid": 7, "host": "ward", "command": "chestx split data"})
    # The first look finds nothing; the name is there by the second.
    monkeypatch.setattr("chestx_cli.store.locks.time.sleep", lambda _: (folder / "the-split.json").write_text(holder))
    with FileLock(folder / "the-split.lock"), pytest.raises(StudyError) as refused, locked(tmp_path, "the split", ""):
        pass
    assert "is being written by process 7 on ward (chestx split data)" in refused.value.fact
    # One that is gone by the second look leaves the lock to us.
    (folder / "the-split.json").unlink()
    held = FileLock(folder / "the-split.lock")
    held.acquire()
    monkeypatch.setattr("chestx_cli.store.locks.time.sleep", lambda _: held.release())
    with locked(tmp_path, "the split", "chestx split"):
        pass


def test_a_split_is_durable_when_it_is_written(
    chestx: Chestx, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, replace = files._sync, Path.replace

    def noted_sync(path: Path) -> None:
        done.append(f"sync {path.name}")
        sync(path)

    def noted_replace(source: Path, final: Path) -> Path:
        done.append(f"to {final.name}")
        return replace(source, final)

    monkeypatch.setattr(files, "_sync", noted_sync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    assert chestx("split", data, "--study", tmp_path / "study").code == 0
    assert done[done.index("to split.json") + 1] == "sync study"


def test_results_are_never_written_into_another_model(chestx: Chestx, study: Path) -> None:
    target = Study(study)
    before = target.read_variant("oneshot-50")
    assert chestx("prune", "--study", study, "--amount", "0.3", "--name", "oneshot-50", "--force").code == 0
    with pytest.raises(StudyError, match="replaced in the meantime"), target.results_of(before):
        pass


def test_a_variant_that_changes_under_an_evaluation_is_told(
    chestx: Chestx, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = locks.hold

    def replaced_just_before(*about: Any) -> None:
        target = Study(study)
        monkeypatch.setattr(thresholds, "hold", real)
        write_record(target.variant("oneshot-50") / "variant.json", target.read_variant("oneshot-50").replace(notes=()))
        real(*about)

    monkeypatch.setattr(thresholds, "hold", replaced_just_before)
    outcome = chestx("evaluate", "--study", study, "--operating-point", "sensitivity=0.8", "--baseline", "oneshot-50")
    assert outcome.code == 1
    assert "changed by another command just now" in outcome.err


def test_a_report_appears_whole_or_the_old_one_stays(
    chestx: Chestx, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(study / "report")
    real = write_atomic

    def full_at_the_end(path: Path, text: bytes | str) -> None:
        if path.name == "report.md":
            no_space_at = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise storage_error(no_space_at, path)
        real(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(writing, "write_atomic", full_at_the_end)
        outcome = chestx("report", "--study", study, "--seed", "7")
    assert outcome.code == 1
    assert f"{study / 'report' / 'report.md'}: No space left on device" in outcome.err.replace("\n", "")
    assert tree(study / "report") == before
    # Killed between two renames: whatever reads the study next brings it back.
    (study / "report").rename(study / ".report.retired")
    assert chestx("prune", "--study", study, "--amount", "0.5").code == 0
    assert tree(study / "report") == before


def test_an_unwritable_study_is_told(chestx: Chestx, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    outcome = chestx("split", data, "--study", tmp_path / "file" / "study")
    assert outcome.code == 1
    assert "--study" in outcome.err
    assert "Traceback" not in outcome.err
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_study_without_permission_is_told(chestx: Chestx, data: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    outcome = chestx("split", data, "--study", locked / "study")
    assert outcome.code == 1
    assert "Permission denied" in outcome.err
