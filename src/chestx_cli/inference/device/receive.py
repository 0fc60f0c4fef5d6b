"""Receive bundles on stdin, time them in interleaved rounds, answer on stdout, and leave no files behind.

Run by `chestx benchmark --host` through ssh; needs only the standard library (Python 3.9 or newer). Stdin has a line of
JSON, then the files that it lists. It stays open while the sender runs; when it ends, the work here is stopped.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TypedDict

BLOCK_BYTES = 2**20
WATCH_S = 0.2


class Request(TypedDict):
    """The request: name and size in bytes of each file, each command as a script and its arguments, and the rounds."""

    files: list[tuple[str, int]]
    commands: list[list[str]]
    rounds: int


class _Children:
    """The running child process, and whether the connection has ended."""

    process: subprocess.Popen[str] | None = None
    sender_left = False


def receive(folder: Path) -> Request:
    """Write the files from stdin into a folder; return the request that precedes them."""
    request: Request = json.loads(sys.stdin.buffer.readline())
    for name, size_bytes in request["files"]:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            remaining = size_bytes
            while remaining:
                block = sys.stdin.buffer.read(min(remaining, BLOCK_BYTES))
                if not block:
                    raise EOFError("the connection ended while files were sent")
                file.write(block)
                remaining -= len(block)
    return request


def stop_with_sender() -> None:
    """Wait for the end of stdin, then kill the running process and any that follow."""
    # Not through sys.stdin: a thread waiting inside its lock would break interpreter shutdown.
    os.read(0, 1)
    _Children.sender_left = True
    while True:
        if _Children.process is not None:
            _Children.process.kill()
        time.sleep(WATCH_S)


def work(folder: Path, request: Request) -> int:
    """Run every command once per round, one process at a time, and write each answer; return the exit code.

    Every second round runs in reverse order, so that drift of the machine affects all commands equally.
    """
    turns = list(enumerate(request["commands"]))
    for number in range(request["rounds"]):
        for index, (script, *words) in turns if number % 2 == 0 else reversed(turns):
            line = [sys.executable, str(folder / script), *words]
            _Children.process = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                # Libraries leave temporary files: ONNX Runtime leaves one that identifies its session.
                env={**os.environ, "TMPDIR": str(folder)},
            )
            output, errors = _Children.process.communicate()
            if _Children.sender_left:
                return 1
            if _Children.process.returncode:
                ended = f"error: its process ended with code {_Children.process.returncode}\n"
                sys.stderr.write(errors if errors.startswith("error: ") else errors + ended)
                return 1
            sys.stdout.write(json.dumps({"chestx": index, "answer": json.loads(output)}) + "\n")
            sys.stdout.flush()
    return 0


def main() -> int:
    """Work in a temporary folder that is always removed at the end; return the exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    folder = Path(tempfile.mkdtemp(prefix="chestx-"))
    try:
        request = receive(folder)
        threading.Thread(target=stop_with_sender, daemon=True).start()
        return work(folder, request)
    except (OSError, EOFError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
