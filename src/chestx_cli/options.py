"""Options, declared once: the annotation of a stage's parameter is its flag, its help and its check."""

from __future__ import annotations

import inspect
import math
import shlex
import typing
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from chestx_cli.errors import UsageError


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


StudyDir = Annotated[
    Path, Opt(help="Study directory: everything is written to and read from it.", envvar="CHESTX_STUDY", identity=False)
]
Seed = Annotated[int, Opt(help="Seed of everything random in this command.", minimum=0, maximum=2**32 - 1)]
Force = Annotated[bool, Opt(help="Replace what exists already.", identity=False)]
Restart = Annotated[bool, Opt(help="Begin anew instead of going on where it was stopped.", identity=False)]
CheckpointEvery = Annotated[
    int | None,
    Opt(help="Steps between checkpoints, for long epochs; every epoch ends with one.", minimum=1, identity=False),
]
Name = Annotated[
    str | None, Opt(help="Name of the variant to make; named after its method by default.", identity=False)
]
# The parent's weights tell it better than its name.
Parent = Annotated[str, Opt(help="Torch variant to start from.", flag="--from", identity=False)]
Baseline = Annotated[str, Opt(help="Variant that the others are compared with.")]
Device = Annotated[
    str, Opt(help="Device to compute on; auto takes a GPU where there is one.", choices=("auto", "cpu", "cuda"))
]
Precision = Annotated[
    str,
    Opt(
        help="Arithmetic of training; auto takes bf16 where the processor has instructions for it.",
        choices=("auto", "fp32", "bf16"),
    ),
]
Compile = Annotated[
    bool,
    Opt(help="Compile the training step with torch.compile: minutes at first, then faster, above all on a GPU."),
]
ImageSize = Annotated[int, Opt(help="Side of the network's square input in pixels.", minimum=32)]
BatchSize = Annotated[int, Opt(help="Images per step.", minimum=2)]
LearningRate = Annotated[float, Opt(help="Learning rate of Adam.", above=0)]
Variants = Annotated[
    tuple[str, ...], Opt(help="Variants, by name; all of them if none is named.", argument=True, metavar="VARIANT")
]
Threads = Annotated[int | None, Opt(help="Processor threads; all available by default.", minimum=1, maximum=1024)]
Layers = Annotated[
    tuple[str, ...],
    Opt(
        help="Only these layers, by name or pattern; all by default.",
        parse=parse_names,
        show=",".join,
        metavar="NAME,...",
    ),
]
Amounts = Annotated[
    tuple[float, ...],
    Opt(
        help="Shares of a layer's weights to remove.",
        parse=parse_fractions,
        show=joined(","),
        above=0,
        maximum=0.99,
        metavar="FLOAT,...",
    ),
]
Groups = Annotated[Path | None, Opt(help="CSV with the columns path,group: the patient of each image.", metavar="FILE")]
GroupRegex = Annotated[
    str | None, Opt(help="Regular expression whose first group in the relative path is the patient.")
]
Ratios = Annotated[
    tuple[float, ...],
    Opt(
        help="Train/validation/test shares in percent.", parse=parse_ratios, show=joined("/"), above=0, metavar="A/B/C"
    ),
]
Margin = Annotated[
    float,
    Opt(help="Largest loss of accuracy that counts as not inferior.", above=0, maximum=0.5, metavar="SHARE"),
]
SensitivityMargin = Annotated[
    float,
    Opt(help="Largest fall of sensitivity that counts as not inferior.", above=0, maximum=0.5, metavar="SHARE"),
]
SpecificityMargin = Annotated[
    float,
    Opt(help="Largest fall of specificity that counts as not inferior.", above=0, maximum=0.5, metavar="SHARE"),
]
AurocMargin = Annotated[
    float, Opt(help="Largest fall of the AUROC that counts as not inferior.", above=0, maximum=0.5, metavar="AREA")
]
Prevalences = Annotated[
    tuple[float, ...],
    Opt(
        help="Prevalences to give the predictive values at.",
        parse=parse_fractions,
        show=joined(","),
        above=0,
        maximum=0.99,
        metavar="FLOAT,...",
    ),
]
