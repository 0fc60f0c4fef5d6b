"""Precedence of option values: flag, then variable, then file, then default."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chestx_cli.core.errors import UsageError

if TYPE_CHECKING:
    from chestx_cli.core.command import Stage
    from chestx_cli.core.record import Options
    from chestx_cli.settings.sources import Configured


@dataclass(frozen=True, kw_only=True)
class Effective:
    """The option values of one call, and the configured values among them."""

    values: Options
    used: Mapping[str, Configured]


def effective(
    stage: Stage[..., Any], given: Options, typed: Collection[str], configured: Mapping[str, Configured]
) -> Effective:
    """Return the options of a call, given its values and the names of the options in `typed`, which were typed.

    Configured values replace defaults. A value is ignored if it has no effect with the other options or the selected
    method lacks the option, or if a document declares what the command makes (such as a study's plan) and the value
    would change that.
    """
    used = {name: one for name, one in configured.items() if name not in typed}
    harmless = {name: one for name, one in used.items() if not stage.options[name].opt.identity}
    if stage.is_declared is not None and stage.is_declared(_with(given, harmless)):
        used = harmless
    if stage.methods is not None:
        of_method, methods = stage.methods
        method = _with(given, used)[of_method]
        fields = methods.fields(method) if method in methods.registry else {}
        used = {name: one for name, one in used.items() if name in fields or stage.options[name].opt.defaults is None}
    while (unused := _without_effect(stage, _with(given, used))) in used:
        used = {name: one for name, one in used.items() if name != unused}
    return Effective(values=_with(given, used), used=used)


def _without_effect(stage: Stage[..., Any], values: Options) -> str:
    """Return the parameter of an option that has no effect with the others; empty if there is none."""
    try:
        if stage.methods is not None:
            of_method, methods = stage.methods
            fields = methods.fields(values[of_method]) if values[of_method] in methods.registry else {}
            methods.make(values[of_method], {name: value for name, value in values.items() if name in fields})
        if stage.check is not None:
            stage.check(values)
    except UsageError as error:
        return error.option
    return ""


def _with(given: Options, used: Mapping[str, Configured]) -> Options:
    return {**given, **{name: one.value for name, one in used.items()}}
