"""Expected failures: every error states what happened, then what to do."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import time
import traceback
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from chestx_cli.core.record import Document

# Environment variable of worker processes: process id of the `chestx train --processes N` that prints their errors.
LAUNCHER = "CHESTX_LAUNCHER"
# File in which a process started by torch's launchers leaves its error.
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
# Exit code if the goal cannot be reached: a recorded result, not an error.
NOT_REACHABLE = 3


_AGAIN = re.compile("\0(.*?)\0", re.DOTALL)
COMMAND_IN_TEXT = re.compile(r'"(chestx [^"]+)"')
STUDY_FLAG = "--study"
# In the remedy of a StorageError, the option that names a place.
PLACE = "\1"


def quoted(word: str) -> str:
    """Return a word escaped for the shell; without double quotes, which delimit whole commands in remedies."""
    return re.sub(r"([^\w./-])", r"\\\1", word) if "'" in word else shlex.quote(word)


def command_line(words: Iterable[str]) -> str:
    """Return words as one shell command line."""
    return " ".join(map(quoted, words))


def again(words: str) -> str:
    """Return a placeholder for a remedy: the failed command with `words` appended, filled in once it is known."""
    return f"\0{words}\0"


def _with(command: str, words: str) -> str:
    """Return a command line with `words` appended, in place of options of the same names."""
    kept: list[str] = []
    flags = {word for word in shlex.split(words) if word.startswith("--")}
    dropping = False
    for word in shlex.split(command):
        # A value that begins with a hyphen is written as --flag=value.
        if "=" in word and word.partition("=")[0] in flags:
            continue
        dropping = word in flags or (dropping and not word.startswith("-"))
        if not dropping:
            kept.append(word)
    return f"{command_line(kept) or 'the same command'} {words}"


def _as_lines(words: str) -> str:
    """Return flags as lines of TOML, separated by commas."""
    flags = [flag.partition(" ") for flag in words.removeprefix("--").split(" --")]
    return ", ".join(f"{name} = {json.dumps(value) if value else 'true'}" for name, _, value in flags)


def in_study(text: str, study: str) -> str:
    """Return text with `--study` added to every command in quotation marks that names no study."""
    return COMMAND_IN_TEXT.sub(lambda match: f'"{_with_study(match[1], study)}"', text) if study else text


def _with_study(line: str, study: str) -> str:
    # A quotation mark within a path ends the match early: such a command is incomplete.
    is_cut = len(re.findall("'", line)) % 2
    return line if STUDY_FLAG in line or "--help" in line or is_cut else f"{line} {STUDY_FLAG} {study}"


def study_of(command: str) -> str:
    """Return the `--study` value of a command line, quoted for the shell; empty without one."""
    words = shlex.split(command)
    after_flag = [value for word, value in pairwise(words) if word == STUDY_FLAG]
    after_equals = [word.partition("=")[2] for word in words if word.startswith(f"{STUDY_FLAG}=")]
    return next((quoted(study) for study in (*after_flag, *after_equals)), "")


class ChestxError(Exception):
    """An expected failure; the outermost layer prints it in one or two lines and exits with `exit_code`.

    `command` is the failed command as typed, once known. `outer` tells whether another command ran it, which must then
    be run again too. `places` are sentences on options that were not typed: the file or variable that sets each.
    """

    exit_code = 1

    def __init__(self, fact: str, remedy: str = "") -> None:
        super().__init__(fact, remedy)
        self.fact = fact
        self._remedy = remedy
        self.command = ""
        self.outer = False
        self.places: tuple[str, ...] = ()

    @property
    def remedy(self) -> str:
        """Return what to do, with every command complete and ready to run.

        Other commands in quotation marks get the failed command's `--study`.
        """
        text = _AGAIN.sub(lambda match: f'"{_with(self.command, match[1])}"', self._remedy)
        text = in_study(text, study_of(self.command))
        again_too = "then this command again" if self.outer and _AGAIN.search(self._remedy) else ""
        return "; ".join(filter(None, (text, again_too, *self.places)))

    def point_to(self, table: str) -> None:
        """Let a remedy by options of the failed command name lines below a table of a study file in their place."""
        if not _AGAIN.search(self._remedy) and "--" not in self._remedy:
            return
        lines = _AGAIN.sub(lambda match: f'"{_as_lines(match[1])}"', self._remedy)
        self._remedy = f"{lines}; options are lines below [{table}] of the study file (chestx study --init writes one)"

    def __str__(self) -> str:
        return f"{self.fact}; {self.remedy}" if self.remedy else self.fact


class UsageError(ChestxError):
    """An invalid option or argument; `option` is the parameter of one that has no effect with the others, if any."""

    exit_code = 2

    def __init__(self, fact: str, remedy: str = "", *, option: str = "") -> None:
        super().__init__(fact, remedy)
        self.option = option


class DataError(ChestxError):
    """Images, folders or manifests that cannot be used as they are."""


class StudyError(ChestxError):
    """A study directory that lacks a command's input, or already has its output."""


class OtherOptionsError(StudyError):
    """A command's output already exists and was made with other options or inputs."""


class IntegrityError(ChestxError):
    """A file of the study that no longer matches its record."""


class WeightsError(ChestxError):
    """Pretrained weights that are unavailable or do not fit."""


class ExportError(ChestxError):
    """An exported model whose results differ from those of its source."""


class DeviceError(ChestxError):
    """A target device that cannot be reached, or cannot run the model."""


class PluginError(ChestxError):
    """A plugin that cannot be imported, or registers an invalid entry or a name that is taken."""


class StorageError(ChestxError):
    """A file that cannot be written or read; `PLACE` in its remedy stands for the option that sets its location."""

    def __init__(self, fact: str, remedy: str = "", *, path: str = "") -> None:
        super().__init__(fact, remedy)
        self.path = path

    @property
    def remedy(self) -> str:
        """Return what to do, with the option of the failed command that the file lies under."""
        return super().remedy.replace(PLACE, self._flag())

    def about(self, hidden: Path, final: Path) -> StorageError:
        """Return the same error about the file that a hidden one is to become."""
        path = self.path.replace(str(hidden), str(final))
        return StorageError(self.fact.replace(str(hidden), str(final)), self._remedy, path=path)

    def _flag(self) -> str:
        words = shlex.split(self.command)
        named = [*pairwise(words), *(word.split("=", 1) for word in words if "=" in word)]
        flags = {str(Path(value).resolve()): flag for flag, value in named if flag.startswith("--")}
        mine = str(Path(self.path).resolve())
        # The file may be next to a named one, with its name as a prefix, or below a folder that cannot be made.
        below = [place for place in flags if mine.startswith(place)]
        above = [place for place in flags if Path(mine) in Path(place).parents]
        return flags[max(below or above, key=len)] if self.path and (below or above) else STUDY_FLAG


class OutputError(ChestxError):
    """A result that could not be written to stdout; the work itself is done."""


class LostRankError(ChestxError):
    """A process of a distributed training that has ended before the others."""


def kind_of(error: ChestxError) -> str:
    """Return the name of an error's class, or of its closest base class in this module."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == __name__)


def error_of(kind: str, *words: str) -> Exception:
    """Rebuild another process's error from its kind (see `kind_of`, or MemoryError), fact and remedy."""
    if kind == MemoryError.__name__:
        return MemoryError()
    error: Exception = globals()[kind](*words)
    return error


def is_reported() -> bool:
    """Return whether the process that started this one reports its errors."""
    return LAUNCHER in os.environ


def leave_error(error: ChestxError) -> None:
    """Write an error and the current traceback to a file for this process's launcher, if there is one."""
    if path := os.environ.get(ERROR_FILE):
        payload = {"words": [kind_of(error), error.fact, error.remedy], "trace": traceback.format_exc()}
        # The format that torch's own launcher reads and shows.
        document = {"message": f"error: {error}", "timestamp": int(time.time()), "chestx": payload}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps(document), encoding="utf-8")


def left_error(document: Document) -> Exception | None:
    """Return the error in a document of `leave_error`; None if another program wrote the document."""
    if (payload := document.get("chestx")) is None:
        return None
    error = error_of(*payload["words"])
    error.add_note(payload["trace"])
    return error
