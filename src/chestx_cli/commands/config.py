"""`chestx config`: the value of every option in the shell, and where it is set."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

from chestx_cli.core.command import Run, stage
from chestx_cli.core.options import Opt
from chestx_cli.core.registry import COMMANDS
from chestx_cli.core.shared_options import ConfigFile
from chestx_cli.records.configuration import BY_DEFAULT, BY_FILE, BY_VARIABLE, ConfigRecord, SettingRow
from chestx_cli.reporting.config_answer import of_config
from chestx_cli.settings.precedence import effective
from chestx_cli.settings.sources import configurable, read_configuration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chestx_cli.core.options import Declared
    from chestx_cli.settings.sources import Configuration


@stage(examples=("chestx config", "chestx config train"), after="status")
def config(
    run: Run,
    command: Annotated[
        str | None, Opt(help="A command; all by default.", argument=True, metavar="COMMAND", choices=COMMANDS)
    ] = None,
    *,
    config: ConfigFile = None,
) -> ConfigRecord:
    """Show the value of every option, and where it is set.

    A flag counts more than a variable (CHESTX_TRAIN_EPOCHS), a variable more than chestx.toml (epochs in its table
    train), a file more than the default. A value that has no effect with the other options is unused. Functions in
    Python read neither.
    """
    configuration = read_configuration(config, os.environ)
    rows = tuple(row for name in ([command] if command else COMMANDS) for row in _rows(name, configuration))
    record = ConfigRecord(
        stamp=run.stamp(),
        file=str(configuration.path) if configuration.path else None,
        variables=tuple(dict.fromkeys(row.place for row in rows if row.source == BY_VARIABLE and row.place)),
        rows=rows,
    )
    return record.replace(answer=of_config(record, command, tuple(configuration.unknown_variables(COMMANDS))))


def _rows(command: str, configuration: Configuration) -> Iterator[SettingRow]:
    """Yield the options of a command; raises UsageError for anything set that is not allowed."""
    stage = COMMANDS[command].load()
    options = stage.options
    configuration.require_known(command, options, COMMANDS)
    configured = configuration.of(command, options)
    defaults = {
        name: None if one.parameter.default is one.parameter.empty else one.parameter.default
        for name, one in options.items()
    }
    used = effective(stage, defaults, (), configured).used
    for name, declared in configurable(options).items():
        found = configured.get(name)
        source = BY_DEFAULT if found is None else BY_VARIABLE if found.is_variable else BY_FILE
        yield SettingRow(
            command=command,
            option=declared.opt.flag_of(name),
            value=_default(declared) if found is None else _text(declared, found.value),
            source=source,
            place=None if found is None else found.place,
            is_used=found is None or name in used,
        )


def _default(declared: Declared) -> str | None:
    if declared.opt.defaults:
        return declared.opt.shown_defaults() or _text(declared, declared.parameter.default)
    return _text(declared, declared.parameter.default)


def _text(declared: Declared, value: object) -> str | None:
    if isinstance(value, bool):
        return "on" if value else "off"
    return None if value in (None, ()) else declared.opt.show(value)
