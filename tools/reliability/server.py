"""A server that forks a child per command, and imports once what its children would each import.

Reads one request per line and writes one line per answer, both JSON; ends at the end of its input. `python -m
tools.reliability.server`
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

POLL_S = 0.005
MODULES = (
    *("torch", "torchvision", "pandas", "onnx", "PIL.Image", "pydicom", "sklearn.metrics"),
    *("matplotlib.figure", "chestx_cli.cli.main", "chestx_cli.cli.adapter", "chestx_cli.cli.console"),
)
# From linux/capability.h: the capabilities by which root ignores file permissions.
CAPABILITIES_VERSION, DAC_OVERRIDE, DAC_READ_SEARCH = 0x20080522, 1, 2
_failed: set[str] = set()


def main() -> None:
    """Answer requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    # Output of libraries during import is not part of the answer.
    os.dup2(2, 1)
    started_s: dict[int, float] = {}
    _import_all(MODULES)
    for line in sys.stdin:
        request = json.loads(line)
        if request["action"] == "start":
            pid = os.fork()
            if pid == 0:
                _run_in_child(request)
            started_s[pid] = time.perf_counter()
            result: dict[str, Any] = {"pid": pid}
        else:
            result = _reap(request["pid"], started_s.pop(request["pid"]), request["limit_s"])
            imported = Path(request["imported"])
            result["new_modules"] = 0
            if imported.exists():
                result["new_modules"] = _import_all(json.loads(imported.read_text(encoding="utf-8")))
                imported.unlink()
        answers.write(json.dumps(result) + "\n")
        answers.flush()


def _import_all(modules: Sequence[str]) -> int:
    """Import modules here, so that later children need not; return the number of new ones."""
    new = [name for name in modules if name not in sys.modules and name not in _failed and not _is_for_children(name)]
    for name in new:
        try:
            importlib.import_module(name)
        except Exception:
            # Such as a module that warns, or that must be imported after another: children import it themselves.
            _failed.add(name)
    if new:
        # Garbage collection in a child would write to, and so copy, all memory pages shared with this process.
        gc.collect()
        gc.freeze()
    return len(new)


def _is_for_children(module: str) -> bool:
    """Return whether importing a module starts threads, which children would not inherit."""
    return module.partition(".")[0] == "onnxruntime"


def obey_permissions() -> None:
    """Remove root's capabilities to ignore file permissions; no effect for other users."""

    class Header(ctypes.Structure):
        _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]

    libc = ctypes.CDLL(None, use_errno=True)
    header, data = Header(CAPABILITIES_VERSION, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(ctypes.byref(header), data) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    data[0] &= ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH)
    if libc.capset(ctypes.byref(header), data) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _reap(pid: int, started_s: float, limit_s: float) -> dict[str, Any]:
    """Return how a child ended; kill it if it has not ended in time."""
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            return {
                "code": os.waitstatus_to_exitcode(status),
                "seconds": time.perf_counter() - started_s,
                "cpu_s": usage.ru_utime + usage.ru_stime,
                "peak_bytes": usage.ru_maxrss * 1024,
            }
        if time.perf_counter() - started_s > limit_s:
            os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S)


def _run_in_child(request: dict[str, Any]) -> None:
    """Run a command, or a function of a module, in this child process; never returns."""
    code: Any = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number in (1, 2):
            os.dup2(os.open(request["outputs"][number - 1], os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o666), number)
        os.chdir(request["cwd"])
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        obey_permissions()
        if request["fault"] is not None:
            from tools.reliability.faults import Fault, install

            install(Fault(**request["fault"]))
        if request["call"] is not None:
            module, name = request["call"].split(":")
            getattr(importlib.import_module(module), name)(*request["words"])
        else:
            from chestx_cli.cli.main import main as chestx

            sys.argv = ["chestx", *request["words"]]
            chestx()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        # The harness looks for uncaught exceptions.
        traceback.print_exc()
    finally:
        # The command has ended: ignore signals that arrive now.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        with contextlib.suppress(Exception):
            if not code:
                Path(request["imported"]).write_text(json.dumps(list(sys.modules)), encoding="utf-8")
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
