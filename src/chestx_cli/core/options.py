"""Options, declared once: the annotation of a stage's parameter is its flag, its help and its check."""

from __future__ import annotations

import inspect
import math
import shlex
import typing
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chestx_cli.core.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Opt:
    """What the shell needs to know of a parameter, and what both shell and Python check of its value."""

    help: str
    flag: str = ""
    argument: bool = False
    envvar: str | None = None
    choices: Collection[str] | None = None
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    parse: Callable[[str], Any] | None = None
    show: Callable[[Any], str] = str
    metavar: str | None = None
    # Whether another value makes another result; a study directory or --force does not.
    identity: bool = True
    # Whether a text may be the path of a file.
    names_file: bool = False

    def check(self, name: str, value: Any) -> Any:
        """Return `value`; raise UsageError where it is not one of the choices or out of range."""
        label = name if self.argument else self.flag_of(name)
        if value is None:
            return value
        if self.choices is not None and value not in self.choices:
            raise UsageError(f"unknown {label} {value!r}", f"choose one of {', '.join(self.choices)}")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise UsageError(f"{label} {number} is no number to compute with", "give a finite one")
            if self.minimum is not None and number < self.minimum:
                raise UsageError(f"{label} {number} is too small", f"it must be at least {self.minimum:g}")
            if self.above is not None and number <= self.above:
                raise UsageError(f"{label} {number} is too small", f"it must be more than {self.above:g}")
            if self.maximum is not None and number > self.maximum:
                raise UsageError(f"{label} {number} is too large", f"it must be at most {self.maximum:g}")
        return value

    def flag_of(self, name: str) -> str:
        """Return the flag as it is typed."""
        return self.flag or "--" + name.replace("_", "-")

    def flag_off(self, name: str) -> str:
        """Return the flag as it is typed to switch off what is on by default."""
        return "--no-" + self.flag_of(name).removeprefix("--")

    def shared(self, value: Any) -> Any:
        """Return a value as records keep it, which are passed on: no path of this machine, and no folder's name."""
        if isinstance(value, Path):
            return self.metavar or "DIR"
        return Path(value).name if self.names_file and isinstance(value, str) else value


def options_of(function: Callable[..., Any]) -> dict[str, tuple[inspect.Parameter, Any, Opt]]:
    """Return each declared option of a stage function: its parameter, its type and its `Opt`."""
    hints = typing.get_type_hints(function, include_extras=True)
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints.get(name)
        opts = [extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Opt)]
        if opts:
            found[name] = (parameter, typing.get_args(hint)[0], opts[0])
    return found


def command_line(command: str, function: Callable[..., Any], values: dict[str, Any], *, shared: bool = False) -> str:
    """Return what a user would type to call `function` with `values`; options at their default are left out.

    `shared` puts what stands for a path in help texts in place of each path.
    """
    words: list[str] = ["chestx", command]
    for name, (parameter, _, opt) in options_of(function).items():
        value = values.get(name, parameter.default)
        if opt.argument:
            given = value if isinstance(value, tuple) else () if value is None else (value,)
            words.extend(str(opt.shared(item) if shared else item) for item in given)
        elif value != parameter.default:
            words.append(opt.flag_off(name) if value is False else opt.flag_of(name))
            if not isinstance(value, bool):
                words.append(opt.show(opt.shared(value) if shared else value))
    return shlex.join(words)


def parse_fractions(text: str) -> tuple[float, ...]:
    """Return `0.2,0.4` as numbers; raises ValueError."""
    return tuple(float(part) for part in text.split(","))


def parse_counts(text: str) -> tuple[int, ...]:
    """Return `1,16` as whole numbers; raises ValueError."""
    return tuple(int(part) for part in text.split(","))


def parse_names(text: str) -> tuple[str, ...]:
    """Return `conv1,layer4.*` as names."""
    return tuple(part.strip() for part in text.split(","))


def parse_ratios(text: str) -> tuple[float, ...]:
    """Return `70/15/15` as numbers; raises ValueError."""
    return tuple(float(part) for part in text.split("/"))


def joined(separator: str) -> Callable[[Any], str]:
    """Return what writes numbers as an option takes them, with a separator between."""
    return lambda values: separator.join(f"{value:g}" for value in values)
