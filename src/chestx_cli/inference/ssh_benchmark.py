"""Timing of bundles on a remote device over a single ssh connection.

Uses the system's ssh with the user's keys, known hosts and configuration. It never prompts: a device that requires a
password is an error.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from chestx_cli.core.errors import ChestxError, DeviceError, UsageError
from chestx_cli.inference.bundles import SCRIPT, content_of
from chestx_cli.inference.timing import Round

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chestx_cli.inference.bundles import Bundle

RECEIVER = Path(__file__).parent / "device" / "receive.py"
HOST_PYTHON = "python3"
# Names used for results of this machine.
RESERVED = ("cpu", "cuda")
CONNECT_TIMEOUT_S = 10
# A connection without response for a minute is closed.
ALIVE_INTERVAL_S, ALIVE_COUNT = 15, 4
# Exit codes of a shell that cannot find or run a program; ssh's own failures give 255.
NOT_RUN, UNREACHABLE = (126, 127), 255
# Reads the program's length, then the program, from stdin, so that no shell interprets it.
_BOOT = "import sys; exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))"
_HOST = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9._-]*)@)?(?P<name>[A-Za-z0-9_][A-Za-z0-9._-]*)(?::(?P<port>\d+))?"
)


@dataclass(frozen=True, kw_only=True)
class Host:
    """An ssh destination: a host name, an address or an alias from the user's ssh configuration."""

    user: str | None
    name: str
    port: int | None

    def __str__(self) -> str:
        """Return the destination for ssh, without the port."""
        return f"{self.user}@{self.name}" if self.user else self.name

    @property
    def label(self) -> str:
        """Return the device's name for tables and file names, without the user name."""
        named = re.sub("[^A-Za-z0-9_]+", "-", self.name)
        return f"{named}-{self.port}" if self.port else named


def parse_host(text: str) -> Host:
    """Parse `user@device`, `device` or `user@device:port`; raises UsageError for anything else."""
    match = _HOST.fullmatch(text)
    if match is None or not 0 < int(match["port"] or 22) < 2**16:
        raise UsageError(f"--host {text!r} names no device", "give user@device or user@device:port")
    if match["name"].lower() in RESERVED:
        raise UsageError(
            f"--host {text!r} is a name that chestx gives to results of this machine", "give the device's address"
        )
    return Host(user=match["user"], name=match["name"], port=int(match["port"]) if match["port"] else None)


@dataclass(frozen=True, kw_only=True)
class DeviceRound:
    """One round of a model on a device, as reported by the bundle's script; durations in seconds by batch size."""

    seconds: dict[int, tuple[float, ...]]
    peak_bytes: int | None
    runtime_bytes: int | None
    model_sha256: str
    threads: int
    environment: dict[str, str]
    waited_share: float | None

    @property
    def round(self) -> Round:
        """Return it in the form of a round on this machine."""
        return Round(
            seconds=self.seconds,
            peak_bytes=self.peak_bytes,
            runtime_bytes=self.runtime_bytes,
            waited_share=self.waited_share,
        )


def ssh_line(host: Host, python: str) -> list[str]:
    """Return the command line that starts the receiver on a device."""
    settings = {
        "BatchMode": "yes",
        "ConnectTimeout": CONNECT_TIMEOUT_S,
        "ServerAliveInterval": ALIVE_INTERVAL_S,
        "ServerAliveCountMax": ALIVE_COUNT,
        # A shared connection left open would keep our pipes open too.
        "ControlMaster": "no",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    port = ["-p", str(host.port)] if host.port else []
    return ["ssh", "-T", *options, *port, "--", str(host), shlex.join([python, "-c", _BOOT])]


def time_on_host(
    host: Host,
    python: str,
    bundles: Sequence[Bundle],
    words: Sequence[str],
    rounds: int,
    advance: Callable[[], None],
) -> list[list[DeviceRound]]:
    """Time bundles on a device in interleaved rounds; return the rounds of each.

    One process runs at a time, a new one for every model and round. Nothing is left on the device, even if this process
    is killed. Raises DeviceError if the device cannot be reached or fails.
    """
    rounds_by_bundle: list[list[DeviceRound]] = [[] for _ in bundles]
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        try:
            process = subprocess.Popen(
                ssh_line(host, python), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )
        except FileNotFoundError:
            raise DeviceError("there is no ssh on this machine", "install OpenSSH's client") from None
        assert process.stdin is not None  # noqa: S101 - a pipe, see above
        assert process.stdout is not None  # noqa: S101 - a pipe, see above
        sender = threading.Thread(target=_send, args=(process.stdin, bundles, words, rounds), daemon=True)
        sender.start()
        try:
            for line in process.stdout:
                # A device's shell may print a greeting on stdout.
                if line.startswith(b'{"chestx": '):
                    index, answer = _answer(line, host, bundles)
                    rounds_by_bundle[index].append(answer)
                    advance()
            code = process.wait()
        finally:
            # Closing the connection ends the work on the device.
            process.kill()
            process.wait()
            sender.join()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        errors.seek(0)
        if code or any(len(answers) != rounds for answers in rounds_by_bundle):
            raise _failure(host, python, code, errors.read())
    return rounds_by_bundle


def _answer(line: bytes, host: Host, bundles: Sequence[Bundle]) -> tuple[int, DeviceRound]:
    """Parse a line of output into bundle number and round; raises DeviceError for a round of another model."""
    from pydantic import TypeAdapter, ValidationError

    try:
        document = json.loads(line)
        index, answer = document["chestx"], TypeAdapter(DeviceRound).validate_python(document["answer"])
        same = answer.model_sha256 == bundles[index].description.model.sha256
        if not same or not all(second > 0 for seconds in answer.seconds.values() for second in seconds):
            raise ValueError("not of the model that was sent")
    except (ValueError, KeyError, IndexError, TypeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise DeviceError(f"{host} returned an invalid result: {reason}", "run the same command again") from error
    return index, answer


def _send(stdin: IO[bytes], bundles: Sequence[Bundle], words: Sequence[str], rounds: int) -> None:
    """Write the receiver, the request and all files; stdin stays open, because closing it stops the device."""
    files = {f"{index}/{name}": file for index, bundle in enumerate(bundles) for name, file in bundle.files().items()}
    request = {
        "files": [(name, len(f) if isinstance(f, bytes) else f.stat().st_size) for name, f in files.items()],
        "rounds": rounds,
        "commands": [[f"{index}/{SCRIPT.name}", "round", *words] for index in range(len(bundles))],
    }
    program = RECEIVER.read_bytes()
    try:
        stdin.write(b"%d\n%s%s\n" % (len(program), program, json.dumps(request).encode()))
        for file in files.values():
            stdin.write(content_of(file))
        stdin.flush()
    except OSError:
        # The device closed the connection; stderr and the exit code give the reason.
        return


def _failure(host: Host, python: str, code: int, stderr: str) -> ChestxError:
    """Return the error for a failed connection, from ssh's exit code and the stderr of ssh and the device."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else f"ssh ended with code {code}"
    at = f" -p {host.port}" if host.port else ""
    if code == UNREACHABLE:
        return DeviceError(f"{host} cannot be reached: {last}", f'"ssh{at} {host} true" must work without any prompt')
    if code in NOT_RUN:
        return DeviceError(f"{host} cannot run {python}: {last}", "name a Python of the device with --host-python")
    error_lines = [index for index, line in enumerate(lines) if line.startswith("error: ")]
    if error_lines:
        fact, *remedy = lines[error_lines[-1] :]
        return DeviceError(
            f"{host}: {fact.removeprefix('error: ')}", "; ".join(remedy) or f'log in with "ssh{at} {host}"'
        )
    return DeviceError(f"{host} stopped before it finished: {last}", "run the same command again")
