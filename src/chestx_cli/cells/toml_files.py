"""Study files in TOML, with line numbers for errors."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chestx_cli.core.errors import UsageError
from chestx_cli.core.files import storage_error

# What `chestx study --init` writes: the default study.
STUDY_FILE = """\
# A study over folds and seeds: run it by "chestx study study.toml".
# Keys below a command's name are that command's options, written as on the command line without the dashes.

data = "data"          # folder of class folders, or a manifest; relative to this file
folds = 5              # each image is tested in one of them, by models that have not seen its patient
seeds = [42]           # of training, fine-tuning and calibration; three or more show the noise between trainings
endpoint = "accuracy"  # what the verdict is on: chestx study --help lists the choices
margin = 0.02          # the largest loss that counts as not inferior

[split]                # options of chestx split
ratios = [70, 15, 15]  # the second is the validation share; the test share is one fold

[train]                # options of chestx train: the baseline
backbone = "resnet50"
weights = "imagenet"   # or "none", or a file
epochs = 12
lr = 1e-4
batch-size = 32

[evaluate]             # options of chestx evaluate
# operating-point = "youden"

[benchmark]            # options of chestx benchmark, run once, on the first cell
rounds = 5

# Variants: each is a chain of steps from the baseline, and a step is a method of chestx prune or chestx quantize.
[[variants]]
name = "oneshot-50"
steps = [{ prune = "oneshot", amount = 0.5 }]

[[variants]]
name = "iterative-3x20"
steps = [{ prune = "iterative", steps = 3, amount = 0.2 }]

[[variants]]
name = "structured-75-static-int8"
steps = [
    { prune = "structured", amount = 0.75, finetune-epochs = 8, distill = true, lr = 3e-4 },
    { quantize = "static" },
]

[[variants]]
name = "dynamic-int8"
steps = [{ quantize = "dynamic" }]
"""
SENTINEL = "key-that-nobody-writes"


def read_toml(path: Path) -> tuple[dict[str, Any], str]:
    """Return a TOML file's document and text; raises UsageError with the line of a fault, or StorageError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise storage_error(error, path) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text in UTF-8", "save it as UTF-8") from error
    try:
        return tomllib.loads(text), text
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is no TOML: {error}", '"chestx study --init" writes a file that is') from error


def line_of(text: str, path: Sequence[str | int]) -> int | None:
    """Return the line number, from 1, of the key at `path` in a TOML text; None if it is not found.

    The parser gives no positions. Therefore each candidate line is tried: renaming the key on the right line renames
    the key at `path`.
    """
    keys = [part for part in path if isinstance(part, str)]
    if not keys:
        return None
    # The last key of the path; an item of a list is located by its list or by a key inside it.
    last = max(at for at, part in enumerate(path) if isinstance(part, str))
    key, above = str(path[last]), path[:last]
    pattern = re.compile(rf"(?<![\w-])(?:{re.escape(key)}|\"{re.escape(key)}\")(?=\s*[.=\]])")
    lines = text.split("\n")
    for number, line in enumerate(lines):
        for match in pattern.finditer(line):
            renamed = f"{line[: match.start()]}{SENTINEL}{line[match.end() :]}"
            try:
                document = tomllib.loads("\n".join([*lines[:number], renamed, *lines[number + 1 :]]))
            except tomllib.TOMLDecodeError:
                continue
            if SENTINEL in (_at(document, above) or {}):
                return number + 1
    return line_of(text, above) if above else None


def _at(document: Any, path: Sequence[str | int]) -> Any:
    for part in path:
        try:
            document = document[part]
        except (KeyError, IndexError, TypeError):
            return None
    return document if isinstance(document, dict) else None
