"""Which value of an option counts: that of its flag, else of a variable, else of a file, else the default."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chestx_cli.core.errors import UsageError

if TYPE_CHECKING:
    from chestx_cli.core.command import Stage
    from chestx_cli.settings.sources import Configured


@dataclass(frozen=True, kw_only=True)
class Effective:
    """The options of one call, and which of them have a value that is configured."""

    values: Mapping[str, Any]
    used: Mapping[str, Configured]


def effective(
    stage: Stage[..., Any], given: Mapping[str, Any], typed: Collection[str], configured: Mapping[str, Configured]
) -> Effective:
    """Return the options of a call, of which those in `typed` have been typed and the others have their defaults.

    Configured values are defaults of a user: one that has no effect with the other options, or that the chosen method
    has no option for, is not used, and where a document declares what the command makes, as the plan of a study does,
    none is used that would change it.
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


def _without_effect(stage: Stage[..., Any], values: Mapping[str, Any]) -> str:
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


def _with(given: Mapping[str, Any], used: Mapping[str, Configured]) -> dict[str, Any]:
    return {**given, **{name: one.value for name, one in used.items()}}
