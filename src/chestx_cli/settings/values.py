"""Values of document keys and of variables, converted and checked by the option declarations."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chestx_cli.core.errors import ChestxError, UsageError
from chestx_cli.core.options import parse_share
from chestx_cli.core.signature import nearest_first

if TYPE_CHECKING:
    from chestx_cli.core.options import Declared
    from chestx_cli.core.record import Document, Options

# Creates an error from a key, a fact and a remedy.
Fault = Callable[[str, str, str], ChestxError]
# Values of a variable that sets a switch.
_SWITCH = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


def checked_options(table: Document, declared: Mapping[str, Declared], base: Path, fault: Fault) -> Options:
    """Return options by parameter, from a table whose keys are flags without the dashes.

    Relative paths start at `base`. Raises the error created by `fault` for an unknown key or an invalid value.
    """
    by_key = {one.opt.flag_of(name).removeprefix("--"): (name, one) for name, one in declared.items()}
    options = {}
    for key, value in table.items():
        if key not in by_key:
            raise fault(key, f"unknown key {key!r}", allowed_keys(key, list(by_key)))
        name, one = by_key[key]
        try:
            options[name] = value_of(name, value, one, base)
        except (UsageError, ValueError) as error:
            fact, remedy = (error.fact, error.remedy) if isinstance(error, UsageError) else (str(error), "")
            raise fault(key, fact, remedy) from error
    return options


def allowed_keys(key: str, known: Sequence[str]) -> str:
    """Return the remedy for an unknown key: the allowed keys, most similar first."""
    return f"allowed are {', '.join(nearest_first(key, known))}" if known else "leave it out"


def value_of(name: str, value: Any, declared: Declared, base: Path) -> Any:
    """Return a value of a plan converted to the option's type; raises UsageError or ValueError."""
    from pydantic import TypeAdapter, ValidationError

    _, kind, opt = declared
    if isinstance(value, (str, int, float)) and not isinstance(value, bool) and opt.parse is not None:
        # A list of one item may be written as the item, as on the command line.
        value = opt.parse(str(value))
    elif isinstance(value, str) and opt.is_share:
        value = parse_share(value)
    elif isinstance(value, str) and (kind is Path or Path in typing.get_args(kind)):
        value = base / Path(value).expanduser()
    elif isinstance(value, str) and opt.names_file and (base / value).is_file():
        value = str(base / value)
    try:
        checked = TypeAdapter(kind).validate_python(tuple(value) if isinstance(value, list) else value, strict=True)
    except ValidationError as error:
        what = error.errors()[0]["msg"]
        raise ValueError(f"{value!r} cannot be the value of {opt.flag_of(name).removeprefix('--')}: {what}") from error
    return opt.check(name, checked)


def read_text(text: str, declared: Declared) -> Any:
    """Return the document value that a variable's text represents; raises ValueError.

    The text is written as after the flag on the command line; a switch is true or false.
    """
    _, kind, opt = declared
    kinds = {kind, *typing.get_args(kind)}
    if bool in kinds:
        if (word := text.lower()) not in _SWITCH:
            raise ValueError(f"{text!r} is neither true nor false")
        return _SWITCH[word]
    if opt.parse is not None or opt.is_share or not kinds & {int, float}:
        return text
    try:
        return int(text) if int in kinds else float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a {'whole number' if int in kinds else 'number'}") from None
