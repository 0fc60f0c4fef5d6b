"""Commands in forks of one warm process: what starting Python and importing torch cost is paid once.

`python -m torture.forks` reads one JSON request a line, runs it in a fork, and answers with one line.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from torture.processes import BUGS, ROOT, TINY_ENV

WARM = ("torch", "pandas", "onnxruntime", "onnx", "PIL.Image", "sklearn.metrics", "matplotlib.figure", "pydicom")
LIMIT_S = 120.0
# linux/capability.h: what lets root read and write in spite of a file's permissions.
CAPABILITIES_VERSION, DAC_OVERRIDE, DAC_READ_SEARCH = 0x20080522, 1, 2


@dataclass(frozen=True, kw_only=True)
class Forked:
    """A command that has ended in a fork: exit code (negative for a signal), what it said, its times, its peak memory.

    `cpu_s` is what it computed, which does not depend on who else uses the machine.
    """

    code: int
    said: str
    seconds: float
    cpu_s: float
    peak_bytes: int

    @property
    def crashed(self) -> bool:
        """Return whether it ended by an exception that nobody expected, or by a signal."""
        return self.code < 0 or any(bug in self.said for bug in BUGS)


class Forker:
    """A warm process that runs commands in forks of itself; a context manager."""

    def __enter__(self) -> Forker:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "torture.forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **TINY_ENV},
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def chestx(self, *words: object) -> Forked:
        """Run a chestx command; one that takes longer than two minutes is killed. A name's odd bytes are kept."""
        return self._ask({"words": [os.fsencode(str(word)).decode("latin-1") for word in words], "limit_s": LIMIT_S})

    def call(self, function: str, *words: object, limit_s: float = LIMIT_S) -> Forked:
        """Call a function of a module, named as `module:function`, with texts."""
        texts = [os.fsencode(str(word)).decode("latin-1") for word in words]
        return self._ask({"function": function, "words": texts, "limit_s": limit_s})

    def _ask(self, request: dict[str, Any]) -> Forked:
        assert self._process.stdin is not None  # noqa: S101 - asked for above
        assert self._process.stdout is not None  # noqa: S101
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Forked(**json.loads(self._process.stdout.readline()))


def obey_permissions() -> None:
    """Take from root what lets it ignore the permissions of files; another user is left as it is."""

    class Header(ctypes.Structure):
        _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]

    libc = ctypes.CDLL(None, use_errno=True)
    header, data = Header(CAPABILITIES_VERSION, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(ctypes.byref(header), data) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    data[0] &= ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH)
    if libc.capset(ctypes.byref(header), data) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _serve() -> None:
    for name in WARM:
        importlib.import_module(name)
    # Answers go where nothing else can write.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for line in sys.stdin:
        request = json.loads(line)
        words = [os.fsdecode(word.encode("latin-1")) for word in request["words"]]
        answers.write(json.dumps(asdict(_forked(_work(request.get("function"), words), request["limit_s"]))) + "\n")
        answers.flush()


def _work(function: str | None, words: Sequence[str]) -> Callable[[], None]:
    if function is None:
        from chestx_cli.cli import main

        sys.argv = ["chestx", *words]
        return main
    module, _, name = function.partition(":")
    wanted = getattr(importlib.import_module(module), name)
    return lambda: wanted(*words)


def _forked(work: Callable[[], None], limit_s: float) -> Forked:
    with tempfile.TemporaryFile() as said:
        started_s = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            _run(work, said)
        watchdog = threading.Timer(limit_s, os.kill, (pid, signal.SIGKILL))
        watchdog.start()
        _, status, usage = os.wait4(pid, 0)
        watchdog.cancel()
        seconds = time.perf_counter() - started_s
        said.seek(0)
        return Forked(
            code=os.waitstatus_to_exitcode(status),
            said=said.read().decode(errors="backslashreplace"),
            seconds=seconds,
            cpu_s=usage.ru_utime + usage.ru_stime,
            peak_bytes=usage.ru_maxrss * 1024,
        )


def _run(work: Callable[[], None], said: IO[bytes]) -> None:
    """Run a command in the fork and end it there, whatever happens."""
    code = 1
    try:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        obey_permissions()
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    _serve()
