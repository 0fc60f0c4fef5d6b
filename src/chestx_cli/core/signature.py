"""Parameter descriptions of a stage for `help()` and the reference, from the options that define its flags."""

from __future__ import annotations

import difflib
import inspect
import textwrap
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chestx_cli.core.errors import UsageError
from chestx_cli.core.options import Declared, Opt

WIDTH = 79


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """Description of one stage parameter: type, default and limits as text; `default` is empty if it is required."""

    name: str
    kind: str
    default: str
    limits: str
    meaning: str

    @property
    def heading(self) -> str:
        """Return name, type, default and limits on one line."""
        parts = [self.kind, f"default {self.default}" if self.default else "required", self.limits]
        return f"{self.name} : {', '.join(filter(None, parts))}"


def parameters_of(options: Mapping[str, Declared]) -> tuple[Parameter, ...]:
    """Return the descriptions of a stage's parameters, in order."""
    return tuple(
        Parameter(
            name=name,
            kind=_kind(kind),
            default=(opt.shown_defaults() if opt.defaults else "") or _default(parameter.default),
            limits=_limits(opt),
            meaning=" ".join(
                [opt.help_by_methods(), *(f"{name}: {text}" for name, text in (opt.meanings or {}).items())]
            ),
        )
        for name, (parameter, kind, opt) in options.items()
    )


def docstring_of(function: Callable[..., Any], options: Mapping[str, Declared]) -> str:
    """Return the `help()` text of a stage: its docstring, parameters, return type and errors."""
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    lines = [line for paragraph in paragraphs for line in (*textwrap.wrap(paragraph, WIDTH), "")]
    lines += _underlined("Parameters")
    for parameter in parameters_of(options):
        lines += textwrap.wrap(parameter.heading, WIDTH, subsequent_indent="        ", break_on_hyphens=False)
        lines += textwrap.wrap(parameter.meaning, WIDTH, initial_indent="    ", subsequent_indent="    ")
    lines += ["", *_underlined("Returns"), returned_by(function), ""]
    lines += [
        *_underlined("Raises"),
        "ChestxError",
        "    What went wrong, then what to do; UsageError for a wrong value.",
    ]
    return "\n".join(lines)


def returned_by(function: Callable[..., Any]) -> str:
    """Return a stage's return annotation as text, whether or not its module postpones annotations."""
    annotation = function.__annotations__["return"]
    if isinstance(annotation, str):
        return annotation
    kinds = typing.get_args(annotation) or (annotation,)
    return " | ".join(kind.__name__ for kind in kinds)


def refuse_unknown(stage: str, keywords: Iterable[str], options: Mapping[str, Declared]) -> None:
    """Raise UsageError for a keyword that a stage does not have; the remedy lists its keywords, most similar first."""
    for name in keywords:
        if name not in options:
            flags = {opt.flag_of(known).strip("-").replace("-", "_"): known for known, (_, _, opt) in options.items()}
            same = [flags[typed]] if (typed := name.strip("_")) in flags else []
            raise UsageError(
                f"{stage} has no parameter {name!r}",
                f"choose one of {', '.join(nearest_first(name, options, known_as=same))}",
            )


def nearest_first(name: str, choices: Collection[str], *, known_as: Iterable[str] = ()) -> tuple[str, ...]:
    """Return all choices: those in `known_as`, then those spelled most like `name`, then the rest in order."""
    similar = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    return tuple(dict.fromkeys([*known_as, *similar, *choices]))


def _underlined(title: str) -> list[str]:
    return [title, "-" * len(title)]


def _kind(kind: Any) -> str:
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return " or ".join(_kind(part) for part in typing.get_args(kind) if part is not types.NoneType)
    if typing.get_origin(kind) is tuple:
        return f"tuple of {_kind(typing.get_args(kind)[0])}"
    return "path" if kind is Path else str(getattr(kind, "__name__", kind))


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return ""
    return repr(str(value)) if isinstance(value, Path) else repr(value)


def _limits(opt: Opt) -> str:
    if opt.choices is not None:
        return f"one of {', '.join(repr(choice) for choice in opt.choices)}"
    bounds = (("at least", opt.minimum), ("more than", opt.above), ("at most", opt.maximum))
    return ", ".join(f"{word} {_number(bound)}" for word, bound in bounds if bound is not None)


def _number(bound: float) -> str:
    return f"{bound:,.0f}".replace(",", "_") if float(bound).is_integer() else f"{bound:g}"
