"""A bundle's script, run as a device runs it."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from chestx_cli.inference.bundles import SCRIPT
from conftest import Chestx
from tools.reliability.groups.matrix import script_of_bundle

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def exported_baseline(chestx: Chestx, finished: Path, folder: Path) -> Path:
    """Return a bundle of the baseline of a finished study, of which a copy is exported in a folder."""
    study, out = folder / "study", folder / "bundle"
    shutil.copytree(finished, study, copy_function=os.link)
    outcome = chestx("export", "baseline", "--study", study, "--out", out)
    assert outcome.code == 0, outcome.err
    return out


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
