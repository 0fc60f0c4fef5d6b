"""Expected failures: every error states the fact and then the remedy."""

from __future__ import annotations

import re
import shlex

# Nothing failed, but the goal cannot be reached: recorded, not raised.
NOT_REACHABLE = 3


_AGAIN = re.compile("\0(.*?)\0", re.DOTALL)


def again(words: str) -> str:
    """Return, for a remedy, the command that failed with more words behind it; it is named when it is known."""
    return f"\0{words}\0"


def _with(command: str, words: str) -> str:
    """Return a command line with more words, in place of the options of the same names."""
    kept: list[str] = []
    given = {word for word in shlex.split(words) if word.startswith("--")}
    dropping = False
    for word in shlex.split(command):
        dropping = word in given or (dropping and not word.startswith("-"))
        if not dropping:
            kept.append(word)
    return f"{shlex.join(kept) or 'the same command'} {words}"


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
        """Return what to do, with whole commands to be typed where it is to give the command again."""
        text = _AGAIN.sub(lambda match: f'"{_with(self.command, match[1])}"', self._remedy)
        return f"{text}; then this command again" if self.outer and text != self._remedy else text

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
