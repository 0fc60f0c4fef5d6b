"""Expected failures: every error states the fact and then the remedy."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import time
import traceback
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

# Process id of `chestx train --processes N`, in the environment of those that it starts: it prints their errors.
LAUNCHER = "CHESTX_LAUNCHER"
# Where a process that torch's launchers start leaves its error.
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
# Nothing failed, but the goal cannot be reached: recorded, not raised.
NOT_REACHABLE = 3


_AGAIN = re.compile("\0(.*?)\0", re.DOTALL)
_COMMAND = re.compile(r'"(chestx [^"]+)"')
STUDY_FLAG = "--study"


def quoted(word: str) -> str:
    """Return a word as a shell takes it; without quotation marks, which stand around whole commands in remedies."""
    return re.sub(r"([^\w./-])", r"\\\1", word) if "'" in word else shlex.quote(word)


def command_line(words: Iterable[str]) -> str:
    """Return words as a command line."""
    return " ".join(map(quoted, words))


def again(words: str) -> str:
    """Return, for a remedy, the failed command with more words appended; it is filled in when it is known."""
    return f"\0{words}\0"


def _with(command: str, words: str) -> str:
    """Return a command line with more words, in place of the options of the same names."""
    kept: list[str] = []
    given = {word for word in shlex.split(words) if word.startswith("--")}
    dropping = False
    for word in shlex.split(command):
        # A value that begins with a hyphen is in one word with its flag.
        if "=" in word and word.partition("=")[0] in given:
            continue
        dropping = word in given or (dropping and not word.startswith("-"))
        if not dropping:
            kept.append(word)
    return f"{command_line(kept) or 'the same command'} {words}"


def in_study(text: str, study: str) -> str:
    """Return text in which the commands in quotation marks are given a study, as it is typed, where they name none."""
    return _COMMAND.sub(lambda match: f'"{_with_study(match[1], study)}"', text) if study else text


def _with_study(line: str, study: str) -> str:
    # A path with a quotation mark ends the command for whoever looks for its end.
    is_cut = len(re.findall("'", line)) % 2
    return line if STUDY_FLAG in line or "--help" in line or is_cut else f"{line} {STUDY_FLAG} {study}"


def _study_of(command: str) -> str:
    """Return what a command line has for its study, as it is typed; empty where it has the usual one."""
    words = shlex.split(command)
    apart = [after for word, after in pairwise(words) if word == STUDY_FLAG]
    joined = [word.partition("=")[2] for word in words if word.startswith(f"{STUDY_FLAG}=")]
    return next((quoted(study) for study in (*apart, *joined)), "")


class ChestxError(Exception):
    """An expected failure; the outermost layer prints it in one or two lines and exits with `exit_code`.

    `command` is what was typed for the command that failed, set where it is known, and `outer` whether that was run by
    another one, which has to be given again then.
    """

    exit_code = 1

    def __init__(self, fact: str, remedy: str = "") -> None:
        super().__init__(fact, remedy)
        self.fact = fact
        self._remedy = remedy
        self.command = ""
        self.outer = False

    @property
    def remedy(self) -> str:
        """Return what to do, with every command complete, as it can be typed.

        Other commands that it names in quotation marks get the study of the one that failed.
        """
        text = _AGAIN.sub(lambda match: f'"{_with(self.command, match[1])}"', self._remedy)
        text = in_study(text, _study_of(self.command))
        return f"{text}; then this command again" if self.outer and _AGAIN.search(self._remedy) else text

    def __str__(self) -> str:
        return f"{self.fact}; {self.remedy}" if self.remedy else self.fact


class UsageError(ChestxError):
    """An invalid option or argument."""

    exit_code = 2


class DataError(ChestxError):
    """Images, folders or manifests that cannot be used as they are."""


class StudyError(ChestxError):
    """A study directory that lacks, or already has, what a command needs or makes."""


class OtherOptionsError(StudyError):
    """What a command would make is there already, made with other options or from other inputs."""


class IntegrityError(ChestxError):
    """A file of the study that no longer matches its record."""


class WeightsError(ChestxError):
    """Pretrained weights that are unavailable or do not fit."""


class ExportError(ChestxError):
    """An exported model that does not compute what its source computes."""


class DeviceError(ChestxError):
    """A target device that cannot be reached, or cannot run what it is sent."""


class PluginError(ChestxError):
    """A plugin that cannot be imported, or registers what is there already."""


class StorageError(ChestxError):
    """A file that cannot be written or read."""


class OutputError(ChestxError):
    """A stdout that takes no more, although the work is done."""


class LostRankError(ChestxError):
    """Another of the processes that train together, which has ended."""


def kind_of(error: ChestxError) -> str:
    """Return the name of an error's class, or of the class of this module that it is a child of."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == __name__)


def error_of(kind: str, *words: str) -> Exception:
    """Return the error of another process, as `kind_of` names it or MemoryError, with its fact and remedy."""
    if kind == MemoryError.__name__:
        return MemoryError()
    error: Exception = globals()[kind](*words)
    return error


def is_reported() -> bool:
    """Return whether the process that started this one shows how it ended."""
    return LAUNCHER in os.environ


def leave_error(error: ChestxError) -> None:
    """Leave an error, and the traceback of what is handled now, for the launcher of this process, if it has one."""
    if path := os.environ.get(ERROR_FILE):
        left = {"words": [kind_of(error), error.fact, error.remedy], "trace": traceback.format_exc()}
        # In the form in which torch's own launcher reads and shows it.
        document = {"message": f"error: {error}", "timestamp": int(time.time()), "chestx": left}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps(document), encoding="utf-8")


def left_error(document: Mapping[str, Any]) -> Exception | None:
    """Return the error of a document that `leave_error` wrote; None where it is another program's."""
    if (left := document.get("chestx")) is None:
        return None
    error = error_of(*left["words"])
    error.add_note(left["trace"])
    return error
