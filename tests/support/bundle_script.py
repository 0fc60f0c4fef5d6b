"""A bundle's script, run as a device runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from chestx_cli.inference.bundles import SCRIPT

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run_script(bundle: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a bundle's script as a device does: without chestx on its path."""
    line = [sys.executable, "-I", str(bundle / SCRIPT.name), *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, check=False, env=ENVIRONMENT)
