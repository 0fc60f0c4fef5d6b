"""`chestx benchmark --host`: variants timed on a device over ssh, with results stored in the study."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chestx_cli.core.errors import ChestxError, DeviceError, UsageError
from chestx_cli.evaluation.reading import read_study
from chestx_cli.inference.bundles import bundle_of
from chestx_cli.inference.ssh_benchmark import parse_host, ssh_line, time_on_host
from chestx_cli.records.benchmark import BenchmarkRecord
from chestx_cli.store.directory import Study
from chestx_cli.store.documents import read_record
from conftest import Chestx
from support import sshd

QUICK = ("--rounds", 3, "--duration", 0.01, "--threads", 1, "--batch-sizes", "1,2")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Server]:
    """Yield an ssh server on this machine's loopback."""
    if not sshd.can_serve():
        pytest.skip("OpenSSH's server is not installed")
    with sshd.serving(tmp_path_factory.mktemp("sshd")) as found:
        yield found


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Put an ssh on the PATH that runs the command on this machine; return the folder of its temporary files."""
    return put_ssh(monkeypatch, tmp_path, 'for last; do :; done; exec sh -c "$last"')


def put_ssh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> Path:
    home, programs = tmp_path / "home", tmp_path / "bin"
    home.mkdir()
    programs.mkdir()
    (programs / "ssh").write_text(f"#!/bin/sh\nexport TMPDIR={shlex.quote(str(home))}\n{script}\n")
    (programs / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return home


def test_a_benchmark_over_ssh_comes_home(
    chestx: Chestx, study: Path, server: sshd.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{server.bin}{os.pathsep}{os.environ['PATH']}")
    at = ("--study", study, "--host", server.address, "--host-python", sys.executable)
    outcome = chestx("benchmark", "dynamic-int8", *at, *QUICK)
    assert outcome.code == 0, outcome.err
    label = f"127-0-0-1-{server.port}"
    records = {
        name: read_record(BenchmarkRecord, study / "variants" / name / f"benchmark.{label}.json")
        for name in ("baseline", "dynamic-int8")
    }
    for name, record in records.items():
        (row,) = record.rows
        assert (record.device, record.threads, record.batch_sizes) == (label, 1, (1, 2))
        assert (row.variant, row.runtime) == (name, "onnxruntime")
        assert row.latency_p50_ms > 0
        assert record.stamp.environment["onnxruntime"]
    assert records["dynamic-int8"].rows[0].speedup_over_best_fp32_interval is not None
    assert list(server.home.iterdir()) == []
    assert label in outcome.out
    assert read_study(Study(study)).devices == ("cpu", label)
    refused = chestx("benchmark", *at[:3], f"nobody-here@127.0.0.1:{server.port}", *QUICK)
    assert refused.code == 1
    assert "cannot be reached" in refused.err
    assert "without any prompt" in refused.err


def test_the_device_decides_on_threads_unless_told(chestx: Chestx, study: Path, stub: Path) -> None:
    words = ("--study", study, "--host", "device", "--host-python", sys.executable, "--rounds", 1, "--duration", 0.01)
    document = chestx("benchmark", "dynamic-int8", *words, "--json").json()
    assert document["threads"] == len(os.sched_getaffinity(0))
    assert document["device"] == "device"
    assert [row["variant"] for row in document["rows"]] == ["baseline", "dynamic-int8"]
    assert list(stub.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "said", "remedy"),
    [
        ("echo 'ssh: connect to host device port 22: Connection refused' >&2; exit 255", "Connection refused", "true"),
        ("echo 'sh: python3: not found' >&2; exit 127", "cannot run python3", "--host-python"),
        ("exit 1", "stopped before it finished", "again"),
        ("exit 0", "stopped before it finished", "again"),
        ('echo \'{"chestx": 0, "answer": {}}\'', "an invalid result", "again"),
        ("echo '{\"chestx\": 7'", "an invalid result", "again"),
    ],
)
def test_what_a_device_cannot_do_is_told(
    chestx: Chestx,
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    said: str,
    remedy: str,
) -> None:
    put_ssh(monkeypatch, tmp_path, script)
    outcome = chestx("benchmark", "dynamic-int8", "--study", study, "--host", "me@device", *QUICK)
    assert outcome.code == 1
    assert said in outcome.err
    assert remedy in outcome.err
    assert list(study.glob("variants/*/benchmark.device.json")) == []


def test_missing_modules_are_told_with_the_command(
    chestx: Chestx, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "numpy.py").write_text("raise ImportError(\"No module named 'numpy'\")")
    home = put_ssh(
        monkeypatch, tmp_path, f'export PYTHONPATH={shlex.quote(str(broken))}\nfor last; do :; done; exec sh -c "$last"'
    )
    words = ("--study", study, "--host", "device", "--host-python", sys.executable, *QUICK)
    outcome = chestx("benchmark", "dynamic-int8", *words)
    assert outcome.code == 1
    assert "device: No module named 'numpy'" in outcome.err
    assert "pip install numpy pillow onnxruntime" in outcome.err
    assert list(home.iterdir()) == []


def test_an_interrupt_here_ends_the_work_there(study: Path, stub: Path) -> None:
    target = Study(study)
    record = target.read_variant("dynamic-int8")
    bundle = bundle_of(target, record, target.variant(record.name) / record.model_file, None)

    def stop() -> None:
        assert len(list(stub.iterdir())) == 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        time_on_host(parse_host("device"), sys.executable, [bundle], ["--duration", "0.01"], 999, stop)
    deadline_s = time.monotonic() + 10
    while list(stub.iterdir()):
        assert time.monotonic() < deadline_s, "the device's folder was left behind"
        time.sleep(0.1)


@pytest.mark.parametrize(
    "words",
    [
        ("--host", "-oProxyCommand=x"),
        ("--host", "user@-x"),
        ("--host", "a b"),
        ("--host", "device:99999"),
        ("--host", "cpu"),
        ("--host", "device", "--device", "cuda"),
        ("--host", "device", "--runtimes", "pytorch"),
        ("--host-python", "python3.12"),
    ],
)
def test_options_that_cannot_be_meant(chestx: Chestx, study: Path, words: tuple[str, ...]) -> None:
    assert chestx("benchmark", "--study", study, *words).code == 2


def test_nothing_that_is_given_becomes_an_option_or_a_command() -> None:
    line = ssh_line(parse_host("me@pi.local:2222"), "-my python; rm")
    assert line[line.index("--") + 1] == "me@pi.local"
    assert line[line.index("-p") + 1] == "2222"
    assert shlex.split(line[-1])[0] == "-my python; rm"
    assert "BatchMode=yes" in line
    assert not any("StrictHostKey" in word for word in line)
    assert parse_host("me@pi.local:2222").label == "pi-local-2222"
    with pytest.raises(UsageError):
        parse_host("")


def test_without_ssh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="no ssh"):
        time_on_host(parse_host("device"), "python3", [], [], 1, lambda: None)
    assert issubclass(DeviceError, ChestxError)
