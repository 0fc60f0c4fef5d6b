"""Every command in a network namespace without a route: the kernel counts attempts to leave it, also by children."""

from __future__ import annotations

import ctypes
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import chestx_cli
from chestx_cli.command_table import SUMMARIES
from chestx_cli.data.synthetic.sets import write_synthetic_set
from tools.reliability import studies
from tools.reliability.children import Children
from tools.reliability.processes import TINY
from tools.reliability.registry import Setting
from tools.reliability.results import MAX_FAILURES, Figure

CRITERION = (
    "the kernel counts no packet and no connection of the command and its children, with or without a route; no "
    "library leaves a file in the home folder or among temporary files, such as an identifier to report later; "
    "the exit code is the same as elsewhere; a download requested by name (chestx train --fetch) is counted"
)
# The demonstration trains a complete network.
LIMIT_S = 3600.0
# From linux/sched.h.
_NEW_USER, _NEW_NET = 0x10000000, 0x40000000
_COUNTERS = ("Ip OutNoRoutes", "Ip OutRequests", "Ip6OutNoRoutes", "Ip6OutRequests")
# Environment variables that set folders, all empty before the first command.
OWN_FOLDERS = {"home": "HOME", "temporary": "TMPDIR", "caches": "XDG_CACHE_HOME"}
# With these set, libraries assume a test machine and send nothing.
WITHOUT = ("CI", "GITHUB_ACTIONS", "TF_BUILD", "JENKINS_URL", "PYTEST_CURRENT_TEST")
SHORT = ("--help", "split", "train", "evaluate")


def measure(setting: Setting) -> Sequence[Figure]:
    """Run each command once, and one command with a requested download."""
    started_s = time.perf_counter()
    failures: list[str] = []
    total = 0
    at, place = setting.at, setting.work / "place"
    for folder in (place, *(place / name for name in OWN_FOLDERS)):
        folder.mkdir()
    if not _tries(at, ("train", "images", "--fetch", "--backbone", "resnet18", "--study", "none"), place, 1):
        raise studies.HarnessError("a requested download was not counted")
    for words in _commands(place):
        if setting.length == "full" or words[0] in SHORT or words == studies.DYNAMIC:
            tries = _tries(at, words, place, 0)
            total += 1
            leftovers = [str(path.relative_to(place)) for name in OWN_FOLDERS for path in (place / name).rglob("*")]
            if tries or leftovers:
                failures.append(f"{' '.join(words)}: {tries} attempts, left {', '.join(leftovers) or 'nothing'}")
    return [
        Figure(
            test=f"{total} commands in a network namespace without a route",
            passed=total - len(failures),
            total=total,
            criterion=CRITERION,
            seconds=time.perf_counter() - started_s,
            failures=tuple(failures[:MAX_FAILURES]),
        )
    ]


def _commands(place: Path) -> Iterator[tuple[str, ...]]:
    """Yield command lines that cover every command."""
    for name, seed in (("images", 3), ("other", 4)):
        write_synthetic_set(place / name, images=48, seed=seed, size_px=64)
    at = studies.AT
    made = [
        ("--help",),
        ("--version",),
        ("demo", "--out", "demo", "--images", "60"),
        ("split", "images", *at, "--image-size", "32"),
        ("train", "images", *at, *TINY, "--epochs", "1", "--batch-size", "16"),
        ("sensitivity", *at, "--amounts", "0.5"),
        studies.ONESHOT,
        ("prune", *at, "--method", "structured", "--amount", "0.3", "--finetune-epochs", "1"),
        ("distill", *at, *TINY, "--epochs", "1", "--batch-size", "16"),
        studies.DYNAMIC,
        ("quantize", *at, "--method", "static"),
        (*studies.QAT, "--name", "trained-int8"),
        studies.EVALUATE,
        ("evaluate", *at, "--data", "other"),
        ("compare", "baseline", "oneshot-50", *at),
        ("benchmark", *at, "--rounds", "1", "--duration", "0.01"),
        ("export", "baseline", *at),
        ("predict", "other", *at, "--csv", "predictions.csv"),
        ("predict", "other", "--bundle", "bundle"),
        studies.COMPRESS,
        studies.REPORT,
        ("config",),
        (
            *("study", "images", "--study", "planned", "--backbone", "tiny", "--weights", "none"),
            *("--epochs", "1", "--folds", "2", "--variants", "oneshot-50"),
        ),
    ]
    # Every other command runs as its first example shows.
    others = sorted(set(SUMMARIES) - {words[0] for words in made})
    yield from made
    yield from ((*shlex.split(getattr(chestx_cli, name).examples[0])[1:], *at) for name in others)


def _tries(at: Children, words: Sequence[str], place: Path, code: int) -> int:
    """Return the number of a command's connection attempts; raises HarnessError for an unexpected exit code."""
    counted = place / "counted"
    ended = at.run((counted, *words), place, call="tools.reliability.groups.network:cut_off", limit_s=LIMIT_S)
    if ended.code != code:
        raise studies.HarnessError(f"{' '.join(words)}: code {ended.code}: {ended.err.strip()[-2000:]}")
    tries = int(counted.read_text())
    counted.unlink()
    return tries


def cut_off(counted: str, *words: str) -> None:
    """Run a command in its own namespace, and write the number of attempts to leave it."""
    _enter_namespace()
    before = _attempts()
    child = os.fork()
    if child == 0:
        from chestx_cli.cli.main import main

        # No weights of an earlier download, and no variables that switch telemetry off.
        os.environ["TORCH_HOME"] = str(Path.cwd() / "weights")
        os.environ |= {name: str(Path.cwd() / folder) for folder, name in OWN_FOLDERS.items()}
        for name in WITHOUT:
            os.environ.pop(name, None)
        sys.argv = ["chestx", *words]
        main()
        sys.exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    Path(counted).write_text(str(_attempts() - before))
    sys.exit(code)


def _enter_namespace() -> None:
    """Enter a network namespace whose only interface, loopback, is down; raises HarnessError."""
    libc = ctypes.CDLL(None, use_errno=True)
    # Root may do this; others need a user namespace, if the system allows one.
    if libc.unshare(_NEW_NET) and libc.unshare(_NEW_USER | _NEW_NET):
        raise studies.HarnessError(f"no network namespace on this machine: {os.strerror(ctypes.get_errno())}")


def _attempts() -> int:
    """Return the numbers of packets and connections in this namespace, with or without a route."""
    lines = Path("/proc/self/net/snmp").read_text().splitlines()
    counts: dict[str, int] = {}
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        kind, *fields = names.split()
        counts |= {f"{kind[:-1]} {name}": int(value) for name, value in zip(fields, values.split()[1:], strict=True)}
    snmp6 = Path("/proc/self/net/snmp6")
    for line in snmp6.read_text().splitlines() if snmp6.exists() else ():
        name, value = line.split()
        counts[name] = int(value)
    return sum(counts.get(name, 0) for name in _COUNTERS)
