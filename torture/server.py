"""A process that has imported what the commands need and forks a child for each: importing takes longer than running.

Reads one request per line and answers with one line, both JSON; ends with its input. `python -m torture.server`
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

POLL_S = 0.005


def main() -> None:
    """Answer requests until there are none."""
    answers = os.fdopen(os.dup(1), "w")
    # What a library prints while it is imported is no answer.
    os.dup2(2, 1)
    started_s: dict[int, float] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if request["ask"] == "preload":
            for name in request["modules"]:
                # One that needs another first, or warns: children import it themselves.
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
            found: dict[str, Any] = {}
        elif request["ask"] == "start":
            pid = os.fork()
            if pid == 0:
                _become(request)
            started_s[pid] = time.perf_counter()
            found = {"pid": pid}
        else:
            found = _reap(request["pid"], started_s.pop(request["pid"]), request["limit_s"])
        answers.write(json.dumps(found) + "\n")
        answers.flush()


def _reap(pid: int, started_s: float, limit_s: float) -> dict[str, Any]:
    """Return how a child ended; one that has not ended in time is killed."""
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            seconds = time.perf_counter() - started_s
            code = os.waitstatus_to_exitcode(status)
            return {"code": code, "seconds": seconds, "peak_bytes": usage.ru_maxrss * 1024}
        if time.perf_counter() - started_s > limit_s:
            os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S)


def _become(request: dict[str, Any]) -> None:
    """Run a command, or a function of a module, in this child; never returns."""
    code: Any = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number in (1, 2):
            os.dup2(os.open(request["said"][number - 1], os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o666), number)
        os.chdir(request["cwd"])
        if request["uid"] is not None:
            os.setgroups([])
            os.setgid(request["uid"])
            os.setuid(request["uid"])
        if request["fault"] is not None:
            from torture.faults import Fault, install

            install(Fault(**request["fault"]))
        if request["call"] is not None:
            module, name = request["call"].split(":")
            getattr(importlib.import_module(module), name)(*request["words"])
        else:
            from chestx_cli.cli import main as chestx

            sys.argv = ["chestx", *request["words"]]
            chestx()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        # What nobody caught is what the harness looks for.
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            if request["modules_to"] is not None:
                with Path(request["modules_to"]).open("w", encoding="utf-8") as file:
                    json.dump(list(sys.modules), file)
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
