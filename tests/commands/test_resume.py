"""Interrupted and resumed fits: bit-identical weights after any kind of interruption at any point."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from rich.console import Console

from chestx_cli.cli.adapter import with_exit_codes
from chestx_cli.core.errors import StudyError
from chestx_cli.core.files import write_atomic
from chestx_cli.networks import training
from chestx_cli.store import checkpoints
from chestx_cli.store.locks import locked
from conftest import TINY, Chestx

EPOCHS = ("--epochs", "3")
PRUNE = ("prune", "--method", "iterative", "--steps", "2", "--finetune-epochs", "2", "--lr", "0.001")


class Killed(BaseException):
    """Ends a command where no code of its own can react."""


def told(study: Path, name: str) -> dict[str, Any]:
    """Return a variant's record without times and the command, which may name --restart."""
    record = json.loads((study / "variants" / name / "variant.json").read_text())
    del record["stamp"]
    for row in record["training"]["epochs"]:
        del row["duration_s"]
    return dict(record)


def train(chestx: Chestx, study: Path, *more: str) -> Any:
    return chestx("train", "--study", study, *TINY, *EPOCHS, "--batch-size", "16", *more)


@pytest.fixture
def whole(chestx: Chestx, fresh: Path) -> tuple[Path, dict[str, Any]]:
    """Return a study with a split, and the output of an uninterrupted training of it."""
    shutil.rmtree(fresh / "variants" / "baseline")
    assert train(chestx, fresh, "--name", "whole").code == 0
    record = json.loads(json.dumps(told(fresh, "whole")).replace("whole", "baseline"))
    return fresh, record


@pytest.mark.parametrize("writes", range(1, 7))
def test_a_training_killed_at_any_checkpoint_ends_in_the_same_weights(
    chestx: Chestx, whole: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    study, expected = whole
    written = []
    real = checkpoints.Checkpoints._write

    def write_then_die(self: checkpoints.Checkpoints, fit: str, snapshot: checkpoints.Snapshot) -> None:
        real(self, fit, snapshot)
        written.append(fit)
        if len(written) == writes:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "_write", write_then_die)
        with pytest.raises(Killed):
            train(chestx, study, "--checkpoint-every", "2")
    assert not (study / "variants" / "baseline").exists()
    again = train(chestx, study, "--checkpoint-every", "2")
    assert again.code == 0, again.err
    assert "train: resuming after epoch" in again.err
    assert told(study, "baseline") == expected
    assert not (study / "checkpoints" / "baseline").exists()


def test_an_averaged_and_scheduled_fit_goes_on_where_it_was_stopped(
    chestx: Chestx, whole: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, plain = whole
    refined = (
        *("--schedule", "cosine", "--warmup-epochs", "0.5", "--weight-decay", "0.05", "--ema", "0.9", "--mixup", "0.3"),
        *("--keep", "one-se", "--label-smoothing", "0.1", "--freeze-epochs", "1", "--checkpoint-every", "2"),
    )
    assert train(chestx, study, *refined, "--name", "refined").code == 0
    expected = json.loads(json.dumps(told(study, "refined")).replace("refined", "baseline"))
    assert expected["model_sha256"] != plain["model_sha256"]
    for step in (1, 3):
        with monkeypatch.context() as patch:
            patch.setattr(training, "_finish_epoch", die_in_epoch(step))
            with pytest.raises(Killed):
                train(chestx, study, *refined, "--force")
        again = train(chestx, study, *refined, "--force")
        assert again.code == 0, again.err
        assert told(study, "baseline") == expected


def test_a_compiled_fit_whose_head_is_trained_first_goes_on_where_it_was_stopped(
    chestx: Chestx, whole: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, plain = whole
    words = ("--compile", "--freeze-epochs", "1", "--checkpoint-every", "2")
    assert train(chestx, study, *words, "--name", "compiled").code == 0
    expected = json.loads(json.dumps(told(study, "compiled")).replace("compiled", "baseline"))
    assert expected["model_sha256"] != plain["model_sha256"]
    compiled: list[list[bool]] = []
    real = torch.compile

    def remember(network: torch.nn.Module, *args: Any, **options: Any) -> Any:
        compiled.append([parameter.requires_grad for parameter in network.parameters()])
        return real(network, *args, **options)

    monkeypatch.setattr(torch, "compile", remember)
    # Within the epoch of the head alone, and within the one after it.
    for epoch in (1, 2):
        with monkeypatch.context() as patch:
            patch.setattr(training, "_finish_epoch", die_in_epoch(epoch))
            with pytest.raises(Killed):
                train(chestx, study, *words, "--force")
        compiled.clear()
        again = train(chestx, study, *words, "--force")
        assert again.code == 0, again.err
        assert f"train: resuming after epoch {epoch - 1} and" in again.err
        assert all(compiled[-1])
        assert all(compiled[0]) == (epoch == 2)
        assert told(study, "baseline") == expected


def test_other_options_are_refused_with_the_difference_and_restart_begins_anew(
    chestx: Chestx, whole: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, expected = whole
    with monkeypatch.context() as patch:
        patch.setattr(training, "_finish_epoch", die_in_epoch(2))
        with pytest.raises(Killed):
            train(chestx, study)
    with monkeypatch.context() as patch:
        # Before images are read or a network is built.
        patch.delattr("chestx_cli.commands.train.found_value_bits")
        outcome = train(chestx, study, "--balance", "none")
    assert outcome.code == 1
    assert "balance: both -> none" in outcome.err
    assert "--restart" in outcome.err
    outcome = train(chestx, study, "--restart")
    assert outcome.code == 0
    assert "resuming" not in outcome.err
    assert told(study, "baseline") == expected


def test_fine_tuning_goes_on_in_the_step_where_it_was_stopped(
    chestx: Chestx, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chestx(*PRUNE, "--study", study, "--name", "whole").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(training, "_finish_epoch", die_in_epoch(4))
        with pytest.raises(Killed):
            chestx(*PRUNE, "--study", study, "--name", "stopped")
    outcome = chestx(*PRUNE, "--study", study, "--name", "stopped")
    assert outcome.code == 0, outcome.err
    assert "prune step 1: resuming after epoch 2 of 2" in outcome.err
    assert "prune step 2: resuming after epoch 1 of 2" in outcome.err
    assert told(study, "stopped") == {**told(study, "whole"), "name": "stopped"}


FITS = {
    "structured": (
        "prune",
        "--method",
        "structured",
        "--amount",
        "0.4",
        "--round-to",
        "1",
        "--steps",
        "2",
        "--distill",
        "--feature-weight",
        "3000",
    ),
    "student": (
        *("distill", "--backbone", "tiny", "--weights", "none", "--width", "0.5", "--feature-weight", "3000"),
        *("--mixup", "0.3", "--precision", "bf16", "--epochs", "2", "--batch-size", "16"),
    ),
    "guided channels": ("prune", "--method", "guided", "--budget", "macs", "--amount", "0.4", "--round-to", "1"),
    "guided zeros": ("prune", "--method", "guided", "--budget", "sparsity", "--amount", "0.6"),
    "qat": ("quantize", "--method", "qat", "--epochs", "2", "--batch-size", "16"),
}


@pytest.mark.parametrize("name", FITS)
def test_every_fit_goes_on_to_the_same_file(
    name: str, chestx: Chestx, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "guided channels":
        measured = chestx("sensitivity", "--structured", "--study", study, "--amounts", "0.5")
        assert measured.code == 0, measured.err
    more = () if name in {"qat", "student"} else ("--finetune-epochs", "2", "--batch-size", "16")
    words = (*FITS[name], *more, "--lr", "0.001", "--checkpoint-every", "1", "--study", study)
    outcome = chestx(*words, "--name", "whole")
    assert outcome.code == 0, outcome.err
    real, written = checkpoints.Checkpoints._write, 0

    def write_then_die(self: checkpoints.Checkpoints, fit: str, snapshot: checkpoints.Snapshot) -> None:
        nonlocal written
        real(self, fit, snapshot)
        written += 1
        if written % 3 == 0:
            raise Killed

    monkeypatch.setattr(checkpoints.Checkpoints, "_write", write_then_die)
    deaths = 0
    while True:
        try:
            outcome = chestx(*words, "--name", "stopped")
            break
        except Killed:
            deaths += 1
    assert outcome.code == 0, outcome.err
    assert deaths > 1
    assert "resuming after epoch" in outcome.err
    # The hash of the model file is among it; a student's caveat names the student.
    expected = json.loads(json.dumps(told(study, "whole")).replace("whole", "stopped"))
    assert told(study, "stopped") == expected


def die_in_epoch(number: int) -> Any:
    """Return an epoch's end that dies the given time that it is reached."""
    real = training._finish_epoch
    calls = []

    def finish(*args: Any) -> None:
        calls.append(args)
        if len(calls) == number:
            raise Killed
        real(*args)

    return finish


def test_a_damaged_checkpoint_is_told(chestx: Chestx, whole: tuple[Path, dict[str, Any]]) -> None:
    study, _ = whole
    folder = study / "checkpoints" / "baseline"
    folder.mkdir(parents=True)
    (folder / "train.safetensors").write_bytes(b"no tensors")
    outcome = train(chestx, study)
    assert outcome.code == 1
    assert "train.safetensors is damaged" in outcome.err
    assert "--restart" in outcome.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_training_that_then_goes_on(
    chestx: Chestx, whole: tuple[Path, dict[str, Any]], number: signal.Signals
) -> None:
    study, expected = whole
    words = ["train", "--study", str(study), *TINY, *EPOCHS, "--batch-size", "16"]
    # The signal comes from inside, after a step of the second epoch: a time would hit another place on every machine.
    code = (
        "import os, signal\nfrom chestx_cli.networks import training as fitting\nreal, steps = fitting.augment, []\n"
        "def augment(*args):\n"
        "    steps.append(1)\n"
        f"    if len(steps) == 6: os.kill(os.getpid(), {int(number)})\n"
        "    return real(*args)\n"
        f"fitting.augment = augment\nimport sys\nsys.argv = ['chestx', *{words!r}]\n"
        "from chestx_cli.cli.main import main\nmain()\n"
    )
    stopped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert stopped.returncode == 128 + number, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert "run the same command to resume" in stopped.stderr
    outcome = train(chestx, study)
    assert outcome.code == 0
    assert "resuming after epoch" in outcome.err
    assert told(study, "baseline") == expected


def test_a_second_signal_stops_at_once() -> None:
    code = (
        "import os, signal, time\nfrom chestx_cli.core.signals import deferred, handled\n"
        "with handled(), deferred():\n"
        "    print('ready', flush=True)\n    time.sleep(1)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=3) == 130


def test_a_signal_is_heard_while_a_library_keeps_the_main_thread() -> None:
    # A key derivation of minutes stands for a step that no handler of Python's interrupts.
    code = (
        "import hashlib\nfrom chestx_cli.core import signals\nsignals.GRACE_S = 0.2\n"
        "with signals.handled(), signals.deferred():\n"
        "    print('ready', flush=True)\n    hashlib.pbkdf2_hmac('sha256', b'a', b'b', 2**30)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 143
    assert "run the same command to resume from its last checkpoint" in said


def test_a_signal_in_a_callback_that_cannot_raise_is_obeyed_and_leaves_no_traceback() -> None:
    code = (
        "import os, signal\nfrom chestx_cli.core import signals\n"
        "class Freed:\n"
        "    def __del__(self): os.kill(os.getpid(), signal.SIGTERM)\n"
        "class Faulty:\n"
        "    def __del__(self): raise ValueError('a fault')\n"
        "with signals.handled():\n"
        "    Freed()\n    Faulty()\n"
        "    try: signals.obey()\n    except signals.Interrupted as stop: os._exit(stop.exit_code)\n"
    )
    stopped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert stopped.returncode == 143
    assert stopped.stderr.count("Traceback") == 1
    assert "ValueError: a fault" in stopped.stderr


def test_a_signal_while_a_command_is_imported_ends_it_without_a_traceback(study: Path) -> None:
    code = (
        "import os, signal, sys\nfrom chestx_cli.cli.main import main\n"
        "class Found:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'chestx_cli.cli.adapter': os.kill(os.getpid(), signal.SIGTERM)\n"
        f"sys.meta_path.insert(0, Found())\nsys.argv = ['chestx', 'report', '--study', {str(study)!r}]\nmain()\n"
    )
    stopped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert stopped.returncode == 143
    assert "Traceback" not in stopped.stderr


def test_a_signal_at_the_end_of_an_epoch_is_obeyed_there(
    chestx: Chestx, whole: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, expected = whole
    real = training._finish_epoch

    def finish(*args: Any) -> None:
        real(*args)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_finish_epoch", finish)
        assert train(chestx, study).code == 143
    outcome = train(chestx, study)
    assert "resuming after epoch 1 of 3" in outcome.err
    assert told(study, "baseline") == expected


def test_what_was_left_to_do_when_a_variant_lay_in_its_place_is_done(
    chestx: Chestx, whole: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, _ = whole

    def die(*_: Any) -> None:
        raise Killed

    figure = study / "report" / "figures" / "training-curves.svg"
    figure.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "clear", die)
        with pytest.raises(Killed):
            train(chestx, study)
    assert (study / "checkpoints" / "baseline").exists()
    outcome = train(chestx, study)
    assert outcome.code == 0
    assert "already done" in outcome.err
    assert figure.exists()
    assert not (study / "checkpoints" / "baseline").exists()


def test_one_variant_is_made_by_one_command_at_a_time(chestx: Chestx, study: Path) -> None:
    with locked(study, "variant oneshot-70", "chestx prune --amount 0.7"):
        outcome = chestx("prune", "--study", study, "--amount", "0.7")
        assert outcome.code == 1
        assert f"process {os.getpid()} on " in outcome.err
        assert "chestx prune --amount 0.7" in outcome.err
        assert chestx("prune", "--study", study, "--amount", "0.8").code == 0
    assert chestx("prune", "--study", study, "--amount", "0.7").code == 0


def test_a_dead_command_is_not_named_while_another_holds_its_lock(tmp_path: Path) -> None:
    holder_file = tmp_path / ".locks" / "the-split.json"
    holder = {"host": socket.gethostname(), "command": "chestx split"}
    dead = subprocess.Popen(["true"])
    dead.wait()
    with locked(tmp_path, "the split", "chestx split"):
        holder_file.write_text(json.dumps({**holder, "pid": dead.pid}))
        late = threading.Timer(0.2, write_atomic, (holder_file, json.dumps({**holder, "pid": os.getpid()})))
        late.start()
        named = pytest.raises(StudyError, match=f"process {os.getpid()} on .*chestx split")
        with named, locked(tmp_path, "the split", "chestx train"):
            pass
        late.join()


def test_a_dead_commands_lock_is_recovered(chestx: Chestx, study: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom chestx_cli.store.locks import locked\n"
        f"with locked(Path({str(study)!r}), 'variant oneshot-70', 'chestx prune --amount 0.7'): os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    outcome = chestx("prune", "--study", study, "--amount", "0.7")
    assert outcome.code == 0
    assert "which has ended" in outcome.err


def test_a_variant_that_was_being_replaced_when_the_command_died_is_restored(chestx: Chestx, study: Path) -> None:
    folder = study / "variants" / "oneshot-50"
    before = (folder / "variant.json").read_bytes()
    folder.rename(folder.with_name(".oneshot-50.retired"))
    assert chestx("evaluate", "--study", study, "oneshot-50").code == 0
    assert (folder / "variant.json").read_bytes() == before
    assert not folder.with_name(".oneshot-50.retired").exists()


@pytest.mark.parametrize("manifest_written", [True, False])
def test_a_split_is_finished_or_undone_where_the_command_died(
    chestx: Chestx, study: Path, data: Path, tmp_path: Path, manifest_written: bool
) -> None:
    other = tmp_path / "other"
    assert chestx("split", data, "--study", other, "--seed", "7").code == 0
    before = (study / "split.csv").read_bytes()
    (study / ".split.json.next").write_bytes((other / "split.json").read_bytes())
    if manifest_written:
        (study / "split.csv").unlink()
        (study / "split.csv").write_bytes((other / "split.csv").read_bytes())
    outcome = chestx("evaluate", "--study", study)
    assert not (study / ".split.json.next").exists()
    if manifest_written:
        assert "another split" in outcome.err
    else:
        assert outcome.code == 0
        assert (study / "split.csv").read_bytes() == before


def test_an_interrupt_that_a_library_makes_an_error_of_is_still_one(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise ValueError("as matplotlib's renderer does") from None

    with pytest.raises(typer.Exit) as stop:
        with_exit_codes(work, Console(stderr=True), debug=False)
    assert stop.value.exit_code == 143
    assert "bug" not in capsys.readouterr().err
