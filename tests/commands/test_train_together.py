"""Training on several processes: the result of one process, killed processes, and a single output."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chestx_cli.networks import training
from chestx_cli.networks.parallel import launching
from conftest import TINY, Chestx

# 42 training images: three steps per epoch, the last of ten images.
FIT = (*TINY, "--batch-size", "16", "--precision", "fp32")
LIMIT_S = 120
# A process of a training of several, as the system shows it.
MODULE = "chestx_cli"


def told(study: Path, name: str = "baseline") -> dict[str, Any]:
    """Return a variant's record without times and the command."""
    record: dict[str, Any] = json.loads((study / "variants" / name / "variant.json").read_text())
    del record["stamp"]
    for row in record["training"]["epochs"]:
        del row["duration_s"]
    return record


def losses(record: dict[str, Any]) -> list[float]:
    return [row["train_loss"] for row in record["training"]["epochs"]]


def begin(study: Path, *more: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    words = [sys.executable, *launcher, "-m", MODULE, "train", "--study", str(study), *FIT, *more]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, out, err


def ranks_of(study: Path) -> list[int]:
    """Return all processes that train a study, except the one that was started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text().split("\0")
        except OSError:
            continue
        if "-P" in words and MODULE in words and str(study) in words:
            found.append(int(path.parent.name))
    return sorted(found)


def ended(study: Path) -> bool:
    """Return whether no process that trains a study is left, within the seconds in which they notice."""
    deadline = time.monotonic() + 5
    while ranks_of(study):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def wait_for_checkpoint(study: Path, process: subprocess.Popen[str]) -> None:
    path = study / "checkpoints" / "baseline" / "train.safetensors"
    deadline = time.monotonic() + LIMIT_S
    while not path.exists():
        assert process.poll() is None, end(process)
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def bare(chestx: Chestx, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a study that has a split and decoded images."""
    study = tmp_path_factory.mktemp("together") / "bare"
    assert chestx("split", data, "--study", study, "--image-size", "32").code == 0
    return study


@pytest.fixture
def own(bare: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bare, tmp_path / "study"))


# Long enough to be stopped on the way.
LONG = ("--epochs", "25", "--checkpoint-every", "5")


@pytest.fixture(scope="module")
def undisturbed(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the record of a training on two processes that nothing disturbed."""
    study = Path(shutil.copytree(bare, tmp_path_factory.mktemp("undisturbed") / "study"))
    code, _, err = end(begin(study, *LONG, "--processes", "2"))
    assert code == 0, err
    return told(study)


@pytest.mark.slow
def test_two_processes_compute_what_one_computes(chestx: Chestx, own: Path) -> None:
    # 21 steps with weighted drawing, class weights, augmentation and dropout.
    epochs = ("--epochs", "7")
    alone = chestx("train", "--study", own, *FIT, *epochs, "--name", "alone")
    assert alone.code == 0, alone.err
    code, out, err = end(begin(own, *epochs, "--processes", "2", "--sync-batchnorm", "--json"))
    assert code == 0, err
    record = json.loads(out)
    assert err == "", "nothing is said twice, or at all"
    assert record["training"]["processes"] == 2
    assert record["training"]["sync_batchnorm"] is True
    assert "batchnorm_parts" not in record["options"], "no other result"
    assert losses(record) == pytest.approx(losses(told(own, "alone")), rel=1e-4)
    assert not [path for path in own.rglob(".*") if path.is_file() and ".locks" not in path.parts]


@pytest.mark.slow
def test_a_killed_process_costs_one_checkpoint_interval_and_no_result(own: Path, undisturbed: dict[str, Any]) -> None:
    process = begin(own, *LONG, "--processes", "2")
    wait_for_checkpoint(own, process)
    # The one that writes.
    os.kill(ranks_of(own)[0], signal.SIGKILL)
    code, _, err = end(process)
    assert code == 0, err
    assert re.search(r"process 0 was ended by SIGKILL; all start again from the last", err)
    assert "train: resuming after epoch" in err
    assert told(own) == undisturbed
    assert ended(own)


@pytest.mark.slow
def test_a_signal_stops_all_and_the_same_command_goes_on(own: Path, undisturbed: dict[str, Any]) -> None:
    process = begin(own, *LONG, "--processes", "2")
    wait_for_checkpoint(own, process)
    process.send_signal(signal.SIGINT)
    code, _, err = end(process)
    assert code == 130
    assert "run the same command to resume" in err
    assert "Traceback" not in err
    assert ended(own)
    code, _, err = end(begin(own, *LONG, "--processes", "2"))
    assert code == 0, err
    assert "resuming after epoch" in err
    assert told(own) == undisturbed


@pytest.mark.slow
def test_no_process_outlives_the_one_that_was_typed(chestx: Chestx, own: Path) -> None:
    process = begin(own, *LONG, "--processes", "2")
    wait_for_checkpoint(own, process)
    assert len(ranks_of(own)) == 2
    process.kill()
    process.wait()
    assert ended(own)
    # A process that is ending gives its lock back last.
    deadline_s = time.monotonic() + 30
    while "is being written" in (other := chestx("train", "--study", own, *FIT, *LONG)).err:
        assert time.monotonic() < deadline_s, other.err
    assert other.code == 1
    assert "batchnorm_parts: 2 -> 1" in other.err


@pytest.mark.slow
def test_with_batchnorm_over_all_another_number_of_processes_goes_on(
    chestx: Chestx, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    few = ("--epochs", "4", "--checkpoint-every", "1")
    with monkeypatch.context() as patch:
        patch.setattr(training, "_finish_epoch", stop)
        assert chestx("train", "--study", own, *FIT, *few).code == 130
    code, _, err = end(begin(own, *few, "--processes", "2", "--sync-batchnorm"))
    assert code == 0, err
    assert "resuming after epoch 0 and" in err
    assert chestx("train", "--study", own, *FIT, *few, "--name", "alone").code == 0
    assert losses(told(own)) == pytest.approx(losses(told(own, "alone")), rel=1e-4)


@pytest.mark.slow
def test_torchrun_starts_the_same_and_restarts_it(own: Path, undisturbed: dict[str, Any]) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1")
    process = begin(own, *LONG, "--restart", launcher=launcher)
    wait_for_checkpoint(own, process)
    ranks = [
        int(line)
        for line in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if MODULE in Path(f"/proc/{line}/cmdline").read_text()
    ]
    os.kill(ranks[-1], signal.SIGKILL)
    code, out, err = end(process)
    assert code == 0, err
    assert out.count("Model variant") == 1
    assert "resuming after epoch" in err
    assert told(own) == undisturbed
    stamp = json.loads((own / "variants" / "baseline" / "variant.json").read_text())["stamp"]
    assert stamp["command"].endswith("--processes 2")


@pytest.mark.slow
def test_an_error_of_the_processes_is_that_of_the_command_and_no_reason_to_start_again(own: Path) -> None:
    code, out, err = end(begin(own, "--epochs", "2", "--lr", "1e30", "--processes", "2", "--json"))
    assert code == 1
    assert "train diverged in epoch" in json.loads(out)["error"]["fact"]
    assert err.count("diverged") == 1
    assert "again" not in err.partition("diverged")[0]


def test_a_training_that_is_killed_again_and_again_is_given_up(
    chestx: Chestx, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = SimpleNamespace(exitcode=-signal.SIGKILL, error_file_data={})
    begun = []

    def run(_n: int, words: Any) -> dict[int, Any]:
        begun.append(list(words))
        return {1: killed}

    monkeypatch.setattr(launching, "_run", run)
    outcome = chestx("train", "--study", own, *FIT, "--processes", "2", "--restart")
    assert outcome.code == 1
    assert "process 1 was ended by SIGKILL; the training has been restarted 3 times already" in outcome.err
    assert ["--restart" in words for words in begun] == [True, False, False, False]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--processes", "4096"), "this machine has"),
        (("--sync-batchnorm",), "one process has nothing to synchronise"),
        (("--processes", "2", "--batch-size", "3"), "leaves a process fewer than 2 images"),
        (("--processes", "2", "--sync-batchnorm", "--compile"), "leave it out, or --compile"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_started(
    chestx: Chestx, own: Path, words: tuple[str, ...], said: str
) -> None:
    outcome = chestx("train", "--study", own, *FIT, *words)
    assert outcome.code == 2
    assert said in outcome.err


def test_another_number_than_torchruns_is_refused(chestx: Chestx, own: Path) -> None:
    env = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "0"}
    outcome = chestx("train", "--study", own, *FIT, "--processes", "3", env=env)
    assert outcome.code == 2
    assert "torchrun has started 2" in outcome.err
