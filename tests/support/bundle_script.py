"""A bundle's script, run as a device runs it."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from chestx_cli.inference.bundles import SCRIPT
from tools.reliability.groups.matrix import script_of_bundle

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run_script(bundle: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a bundle's script as a device does: without chestx on its path."""
    line = [sys.executable, "-I", str(bundle / SCRIPT.name), *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, check=False, env=ENVIRONMENT)


@functools.cache
def loaded_script() -> ModuleType:
    """Return a bundle's script as a module, with the module beside it that reads images loaded."""
    with tempfile.TemporaryDirectory() as folder:
        script = script_of_bundle(Path(folder))
        script.image_reader()
    return script
