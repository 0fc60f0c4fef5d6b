"""Options, declared once: the annotation of a stage's parameter defines its flag, help and validation."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from chestx_cli.core.errors import UsageError
from chestx_cli.core.record import Options

T = TypeVar("T")

# Groups of options in help texts; options shared by most commands have no group.
METHOD, TRAINING, RERUN = "Method", "Training", "Running it again"


@dataclass(frozen=True, kw_only=True)
class Opt:
    """An option: its help and shell syntax, and the validation of its value in shell and Python."""

    help: str
    flag: str = ""
    argument: bool = False
    choices: Collection[str] | None = None
    # Explanation per choice, where the names do not explain themselves.
    meanings: Mapping[str, str] | None = None
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    parse: Callable[[str], Any] | None = None
    show: Callable[[Any], str] = str
    metavar: str | None = None
    # Whether the value affects the result; --study and --force do not.
    identity: bool = True
    # Whether a string value may be a file path.
    names_file: bool = False
    # Group under which the help lists the option.
    panel: str = ""
    # Default value per method, for options that come from methods. Filled in by `Methods`.
    defaults: Mapping[str, object] | None = None
    # Help per method, where methods do not all share one text. Filled in by `Methods`.
    helps: Mapping[str, str] | None = None

    def check(self, name: str, value: Any) -> Any:
        """Return `value`; raise UsageError if it is not one of the choices or is out of range."""
        label = name if self.argument else self.flag_of(name)
        if value is None:
            return value
        if self.choices is not None and value not in self.choices:
            raise UsageError(f"unknown {label} {value!r}", f"choose one of {', '.join(self.choices)}")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise UsageError(f"{label} {number} is not finite", "give a finite number")
            if self.minimum is not None and number < self.minimum:
                raise UsageError(f"{label} {number} is too small", f"it must be at least {self.minimum:g}")
            if self.above is not None and number <= self.above:
                raise UsageError(f"{label} {number} is too small", f"it must be more than {self.above:g}")
            if self.maximum is not None and number > self.maximum:
                percent = f"; write {number:g}% for {number / 100:g}" if self.is_share and number <= 100 else ""
                raise UsageError(f"{label} {number} is too large", f"it must be at most {self.maximum:g}{percent}")
        return value

    @property
    def is_share(self) -> bool:
        """Return whether the value is a fraction of 1, which may also be typed as a percentage."""
        return self.maximum is not None and self.maximum <= 1

    def flag_of(self, name: str) -> str:
        """Return the flag as it is typed."""
        return self.flag or "--" + name.replace("_", "-")

    def flag_off(self, name: str) -> str:
        """Return the flag that switches off an option that is on by default."""
        return "--no-" + self.flag_of(name).removeprefix("--")

    def help_by_methods(self) -> str:
        """Return the help; where it differs by method, each text names its methods."""
        if self.helps is None:
            return self.help
        by_text: dict[str, list[str]] = {}
        for method, text in self.helps.items():
            by_text.setdefault(text, []).append(method)
        return " ".join(f"{text.removesuffix('.')} ({', '.join(methods)})." for text, methods in by_text.items())

    def shown_default(self, value: Any) -> str:
        """Return a default as text; empty for no default and for a switch that is off."""
        # Not by `in`: 0 equals False.
        if value is None or value is False or value == ():
            return ""
        return "on" if value is True else self.show(value)

    def shown_defaults(self) -> str:
        """Return the defaults as text, with the methods' names if they differ; empty without defaults."""
        by_text: dict[str, list[str]] = {}
        for method, value in (self.defaults or {}).items():
            by_text.setdefault(self.shown_default(value), []).append(method)
        if len(by_text) == 1:
            return next(iter(by_text))
        return "; ".join(f"{text} {', '.join(methods)}" for text, methods in by_text.items() if text)

    def shared(self, value: Any) -> Any:
        """Return a value as records store it: without local paths or folder names, since records are shared."""
        if isinstance(value, Path):
            return self.metavar or "DIR"
        return Path(value).name if self.names_file and isinstance(value, str) else value


# What stands for a value of these types in help texts.
_PLACEHOLDERS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


class Declared(NamedTuple):
    """An option of a stage: its parameter in the signature, the type of its value, and its `Opt`."""

    parameter: inspect.Parameter
    kind: Any
    opt: Opt

    @property
    def placeholder(self) -> str:
        """Return what stands for the value in help texts, such as N."""
        if self.opt.metavar:
            return self.opt.metavar
        if self.opt.choices is not None:
            return "NAME"
        kinds = [self.kind, *typing.get_args(self.kind)]
        return next((_PLACEHOLDERS[kind] for kind in kinds if kind in _PLACEHOLDERS), "TEXT")


@dataclass(frozen=True, kw_only=True)
class Methods(Generic[T]):
    """Marks a stage parameter whose value is an instance of one of several registered dataclasses, the methods.

    The stage gets an option that selects the method, and one for every field that a method declares with an `Opt`; the
    function receives the selected method's dataclass. A field that the stage also declares takes the stage's value;
    methods without that field ignore it.
    """

    registry: Mapping[str, type[T]]
    default: str
    help: str

    def fields(self, method: str) -> Mapping[str, Declared]:
        """Return the options of one method, by name."""
        return declared_fields(self.registry[method])

    def declared(self, name: str, own: Collection[str]) -> dict[str, Declared]:
        """Return the option `name`, which selects a method, and the options of all methods except the stage's `own`."""
        meanings = {method: (inspect.getdoc(kind) or "").partition("\n")[0] for method, kind in self.registry.items()}
        opt = Opt(help=self.help, choices=self.registry, panel=METHOD, meanings=meanings)
        by_option: dict[str, dict[str, Declared]] = {}
        for method, kind in self.registry.items():
            for option, declared in declared_fields(kind).items():
                if option not in own:
                    by_option.setdefault(option, {})[method] = declared
        merged = {option: self._joined(option, taking) for option, taking in by_option.items()}
        # The methods' own options come first: many methods share the training options.
        ordered = sorted(merged, key=lambda option: merged[option].opt.panel != METHOD)
        return {
            name: Declared(_keyword(name, self.default, str), str, opt),
            **{option: merged[option] for option in ordered},
        }

    def _joined(self, option: str, taking: Mapping[str, Declared]) -> Declared:
        """Return one declaration for an option of several methods; None means the method's own default."""
        _, kind, opt = next(iter(taking.values()))
        if any(declared.kind != kind for declared in taking.values()):
            raise TypeError(f"option {option!r} has several types: {', '.join(taking)} must share one declaration")
        defaults = {method: declared.parameter.default for method, declared in taking.items()}
        in_all_methods = len(taking) == len(self.registry)
        same_default = in_all_methods and len(set(defaults.values())) == 1
        default, kind = (next(iter(defaults.values())), kind) if same_default else (None, kind | None)
        helps = {method: declared.opt.help for method, declared in taking.items()}
        same_help = in_all_methods and len(set(helps.values())) == 1
        panel = opt.panel or ("" if same_default else METHOD)
        opt = dataclasses.replace(opt, panel=panel, defaults=defaults, helps=None if same_help else helps)
        return Declared(_keyword(option, default, kind), kind, opt)

    def make(self, method: str, options: Options) -> T:
        """Return a method with these options; missing values and None take the method's defaults.

        Raises UsageError for an unknown method, an option that the method does not have, and an invalid value.
        """
        kind = self.registry[method]
        declared = declared_fields(kind)
        values = {}
        for option, value in options.items():
            if value is None:
                continue
            if option not in declared:
                raise self._without_effect(method, option, value)
            _, value_type, opt = declared[option]
            values[option] = opt.check(option, coerced(value, value_type))
        return kind(**values)

    def _without_effect(self, method: str, option: str, value: object) -> UsageError:
        fields = {name: declared_fields(kind) for name, kind in self.registry.items()}
        taking = [name for name, declared in fields.items() if option in declared]
        if not taking:
            return UsageError(f"--method {method} has no option {option!r}", "see the command's --help")
        _, _, opt = fields[taking[0]][option]
        flag = opt.flag_off(option) if value is False else opt.flag_of(option)
        return UsageError(
            f"{flag} has no effect with --method {method}", f"leave it out, or use --method {_any_of(taking)}"
        )


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Marks a stage parameter whose value is a dataclass: each of its fields declared with an `Opt` is an option."""


FIELDS = Fields()


def _any_of(names: list[str]) -> str:
    return " or ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _keyword(name: str, default: Any, kind: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _opt_in(hint: Any) -> Opt | None:
    return next((extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Opt)), None)


def declared_fields(kind: type[Any]) -> Mapping[str, Declared]:
    """Return the fields of a dataclass that are options, by name; every option has a default."""
    return _fields_of(kind)  # type: ignore[arg-type]  # classes are hashable


@functools.cache
def _fields_of(kind: type[Any]) -> Mapping[str, Declared]:
    hints = typing.get_type_hints(kind, include_extras=True)
    by_name = {}
    for field in dataclasses.fields(kind):
        opt = _opt_in(hints[field.name])
        if opt is not None:
            value_type = typing.get_args(hints[field.name])[0]
            if field.default is dataclasses.MISSING:
                raise TypeError(f"{kind.__name__}.{field.name} is an option and has no default")
            by_name[field.name] = Declared(_keyword(field.name, field.default, value_type), value_type, opt)
    return by_name


def options_of(function: Callable[..., Any]) -> dict[str, Declared]:
    """Return the options that a stage function declares, by name, including those of dataclasses that it takes."""
    hints = typing.get_type_hints(function, include_extras=True)
    options: dict[str, Declared] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        opt = _opt_in(hints.get(name))
        if opt is not None:
            options[name] = Declared(parameter, typing.get_args(hints[name])[0], opt)
        elif _has_fields(hints.get(name)):
            options.update(declared_fields(typing.get_args(hints[name])[0]))
    return options


def groups_of(function: Callable[..., Any]) -> dict[str, type[Any]]:
    """Return the dataclasses that a stage function takes its options in, by the name of their parameter."""
    hints = typing.get_type_hints(function, include_extras=True)
    return {name: typing.get_args(hint)[0] for name, hint in hints.items() if _has_fields(hint)}


def _has_fields(hint: Any) -> bool:
    return FIELDS in getattr(hint, "__metadata__", ())


def methods_of(function: Callable[..., Any]) -> tuple[str, Methods[Any]] | None:
    """Return the name of a stage function's method parameter and its marker; None if it has none."""
    for name, hint in typing.get_type_hints(function, include_extras=True).items():
        for extra in getattr(hint, "__metadata__", ()):
            if isinstance(extra, Methods):
                return name, extra
    return None


def coerced(value: Any, kind: Any) -> Any:
    """Return a Python caller's value in the declared type: strings as paths, lists and single values as tuples."""
    if typing.get_origin(kind) is tuple:
        item_type = typing.get_args(kind)[0]
        return tuple(coerced(item, item_type) for item in (value if isinstance(value, (list, tuple)) else (value,)))
    if value is not None and (kind is Path or Path in typing.get_args(kind)):
        return Path(value)
    return value


def parse_share(text: str) -> float:
    """Return `0.5` or `50%` as a number; raises ValueError."""
    text = text.strip()
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a share: write 0.5 or 50%") from None


def parse_fractions(text: str) -> tuple[float, ...]:
    """Return `0.2,0.4` or `20%,40%` as numbers; raises ValueError."""
    return tuple(parse_share(part) for part in text.split(","))


def parse_counts(text: str) -> tuple[int, ...]:
    """Return `1,16` as integers; raises ValueError."""
    return tuple(int(part) for part in text.split(","))


def parse_names(text: str) -> tuple[str, ...]:
    """Return `conv1,layer4.*` as a tuple of names."""
    return tuple(part.strip() for part in text.split(","))


def parse_ratios(text: str) -> tuple[float, ...]:
    """Return `70/15/15`, `70,15,15`, `70%/15%/15%` or `0.7/0.15/0.15` as percentages; raises ValueError."""
    ratios = tuple(float(part.strip().rstrip("%")) for part in text.replace(",", "/").split("/"))
    return tuple(round(100 * ratio, 10) for ratio in ratios) if math.isclose(sum(ratios), 1) else ratios


def joined(separator: str) -> Callable[[Any], str]:
    """Return a function that formats numbers as the option is typed, joined by `separator`."""
    return lambda values: separator.join(f"{value:g}" for value in values)
