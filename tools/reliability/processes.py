"""Programs with the tests' tiny backbone: their environment, and how they are run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.harness import processes
from tools.harness.processes import ROOT, Ended

PLUGINS = ROOT / "tests" / "support" / "plugins"
# The tiny backbone is a plugin of the tests; for networks this small, threads cost more than they save.
TINY_ENV = {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(PLUGINS), str(ROOT / "src"), str(ROOT)]),
}
TINY = ("--backbone", "tiny", "--weights", "none", "--image-size", "32", "--lr", "0.001")


def run(words: Sequence[str], cwd: Path, env: Mapping[str, str], *, limit_s: float = 300.0) -> Ended:
    """Run a program with the tiny backbone to its end; kill it if it takes longer than `limit_s`."""
    return processes.run(words, cwd, {**TINY_ENV, **env}, limit_s=limit_s)
