"""Programs with the tests' tiny backbone: what they are given, and how they are run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.harness import processes
from tools.harness.processes import ROOT, Ended

TINY_FOLDER = ROOT / "tests" / "support" / "tiny"
# Registers the tests' tiny backbone in every Python below; on networks this small, threads cost more than they give.
TINY_ENV = {
    "CHESTX_TINY_BACKBONE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(TINY_FOLDER), str(ROOT / "src"), str(ROOT)]),
}
TINY = ("--backbone", "tiny", "--weights", "none", "--image-size", "32", "--lr", "0.001")


def run(words: Sequence[str], cwd: Path, env: Mapping[str, str], *, limit_s: float = 300.0) -> Ended:
    """Run a program with the tiny backbone to its end, and kill it where it takes longer than `limit_s`."""
    return processes.run(words, cwd, {**TINY_ENV, **env}, limit_s=limit_s)
