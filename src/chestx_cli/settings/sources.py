"""Values set by `chestx.toml` and the variables `CHESTX_*`, and where each was set."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chestx_cli.core.errors import LAUNCHER, UsageError
from chestx_cli.core.shared_options import CONFIG_FLAG
from chestx_cli.settings.toml_files import line_of, read_toml
from chestx_cli.settings.values import Fault, allowed_keys, checked_options, read_text

if TYPE_CHECKING:
    from chestx_cli.core.options import Declared
    from chestx_cli.core.record import Document

FILE = "chestx.toml"
# Instead of a file name: no file is read.
NO_FILE = "none"
PREFIX = "CHESTX_"
FILE_VARIABLE = f"{PREFIX}CONFIG"
# The table for all commands, and its allowed keys: options with the same meaning in every command that has them.
ALL = "all"
SHARED = ("study", "device", "seed")
_ANOTHER_PROGRAM = f"; if the file belongs to another program, {CONFIG_FLAG} {NO_FILE} leaves it unread"


@dataclass(frozen=True, kw_only=True)
class Configured:
    """The value of an option from a file or a variable.

    `place` is the variable's name or a position such as `chestx.toml, line 3`. `is_shared`: set for all commands that
    have the option.
    """

    value: Any
    place: str
    is_variable: bool
    is_shared: bool


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """The file's path (None without a file), its document, and the variables that are not empty."""

    path: Path | None = None
    document: Document = field(default_factory=dict)
    text: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)

    def of(self, command: str, options: Mapping[str, Declared]) -> dict[str, Configured]:
        """Return what is set for a command, by parameter: a variable before the file, the command before all.

        Raises UsageError, which names the place, for a key or variable that is no option, and for a refused value.
        """
        declared = configurable(options)
        by_key = {one.opt.flag_of(name).removeprefix("--"): name for name, one in declared.items()}
        shared = {by_key[key]: declared[by_key[key]] for key in SHARED if key in by_key}
        found = {
            **self._of_table(ALL, shared, command, known=SHARED),
            **self._of_table(command, declared, command, known=tuple(by_key)),
        }
        for name, one in shared.items():
            found.update(self._of_variable(variable_of(None, name, one), name, one, command, is_shared=True))
        for name, one in declared.items():
            found.update(self._of_variable(variable_of(command, name, one), name, one, command, is_shared=False))
        return found

    def require_known(self, command: str, options: Mapping[str, Declared], commands: Collection[str]) -> None:
        """Raise UsageError for a table of no command, and for a variable of `command` that sets no option of it."""
        for name, value in self.document.items():
            if name not in (ALL, *commands) or not isinstance(value, Mapping):
                raise self._unknown(name, value, commands)
        known = [variable_of(command, name, one) for name, one in configurable(options).items()]
        for name in self.variables:
            if name not in known and _command_of(name, commands) == command:
                nearest = _nearest(name, known, _prefix_of(command))
                raise UsageError(f"{name} sets no option of chestx {command}", nearest or help_on(command))

    def unknown_variables(self, commands: Collection[str]) -> list[str]:
        """Return a sentence for each variable whose name matches no option of any command."""
        shared = [f"{PREFIX}{key.upper()}" for key in SHARED]
        unknown = []
        for name in self.variables:
            if name not in (FILE_VARIABLE, *shared) and _command_of(name, commands) is None:
                first, _, rest = name.removeprefix(PREFIX).partition("_")
                similar = difflib.get_close_matches(first.lower(), commands, n=1) if rest else []
                nearest = _nearest(name, [f"{_prefix_of(command)}{rest}" for command in similar] or shared, PREFIX)
                unknown.append(f"{name} sets no option{f'; {nearest}' if nearest else ''}")
        return unknown

    def _of_table(
        self, table: str, declared: Mapping[str, Declared], command: str, *, known: Collection[str]
    ) -> dict[str, Configured]:
        given = self.document.get(table, {})
        fault = self._fault(table, command)
        by_key = {one.opt.flag_of(name).removeprefix("--"): name for name, one in declared.items()}
        for key in given:
            if key not in known:
                raise fault(key, f"unknown key {key!r}", allowed_keys(key, tuple(known)))
        base = self.path.parent if self.path else Path()
        values = checked_options({key: given[key] for key in given if key in by_key}, declared, base, fault)
        keys = {name: key for key, name in by_key.items()}
        return {
            name: Configured(
                value=value, place=self._place(table, keys[name]), is_variable=False, is_shared=table == ALL
            )
            for name, value in values.items()
        }

    def _of_variable(
        self, variable: str, name: str, one: Declared, command: str, *, is_shared: bool
    ) -> dict[str, Configured]:
        if variable not in self.variables:
            return {}

        def fault(_: str, fact: str, remedy: str) -> UsageError:
            return UsageError(f"{variable}: {fact}", remedy or help_on(command))

        key = one.opt.flag_of(name).removeprefix("--")
        try:
            value = read_text(self.variables[variable], one)
        except ValueError as error:
            raise fault(key, str(error), "") from error
        checked = checked_options({key: value}, {name: one}, Path(), fault)
        return {name: Configured(value=checked[name], place=variable, is_variable=True, is_shared=is_shared)}

    def _place(self, *path: str) -> str:
        line = line_of(self.text, path)
        return f"{self.path}, line {line}" if line else str(self.path)

    def _fault(self, table: str, command: str) -> Fault:
        def fault(key: str, fact: str, remedy: str) -> UsageError:
            return UsageError(f"{self._place(table, key)}: {fact} in [{table}]", remedy or help_on(command))

        return fault

    def _unknown(self, name: str, value: Any, commands: Collection[str]) -> UsageError:
        place = self._place(name)
        if isinstance(value, Mapping):
            return UsageError(
                f"{place}: unknown table [{name}]", allowed_keys(name, (ALL, *commands)) + _ANOTHER_PROGRAM
            )
        return UsageError(
            f"{place}: {name} stands in no table",
            f"write it below [{ALL}] or below a command's name, such as [train]{_ANOTHER_PROGRAM}",
        )


def read_configuration(file: str | None, environment: Mapping[str, str]) -> Configuration:
    """Return the configuration of the shell: from `file`, CHESTX_CONFIG, or chestx.toml in the working directory.

    A process started by `chestx train --processes` gets its options from the process that started it, not from here.
    Raises UsageError for a missing file or invalid TOML, StorageError for an unreadable file.
    """
    if LAUNCHER in environment:
        return Configuration()
    variables = {name: text for name, text in environment.items() if name.startswith(PREFIX) and text}
    named = file or variables.get(FILE_VARIABLE)
    path = Path(named or FILE)
    if named == NO_FILE or (named is None and not path.is_file()):
        return Configuration(variables=variables)
    if not path.exists():
        by = "" if file else f" ({FILE_VARIABLE})"
        raise UsageError(f"no configuration file {path}{by}", f"name one that is there, or {NO_FILE}")
    document, text = read_toml(path, 'write [train] and below it lines such as epochs = 6, "chestx config" shows them')
    return Configuration(path=path, document=document, text=text, variables=variables)


def configurable(options: Mapping[str, Declared]) -> dict[str, Declared]:
    """Return the options that files and variables may set: all except arguments and the configuration file itself."""
    return {name: one for name, one in options.items() if not one.opt.argument and one.opt.flag_of(name) != CONFIG_FLAG}


def variable_of(command: str | None, name: str, declared: Declared) -> str:
    """Return the variable that sets an option of a command, or of all commands for None."""
    key = declared.opt.flag_of(name).removeprefix("--").replace("-", "_").upper()
    return f"{PREFIX if command is None else _prefix_of(command)}{key}"


def help_on(command: str) -> str:
    """Return a remedy that points to the help of a command."""
    return f'"chestx {command} --help" lists its options'


def _prefix_of(command: str) -> str:
    return f"{PREFIX}{command.replace('-', '_').upper()}_"


def _command_of(variable: str, commands: Collection[str]) -> str | None:
    """Return the command that a variable's name refers to; None if it refers to none."""
    named = [command for command in commands if variable.startswith(_prefix_of(command))]
    return max(named, key=len, default=None)


def _nearest(variable: str, known: Collection[str], prefix: str) -> str:
    """Return the known variable most similar to `name`, ignoring the common prefix; empty if none is similar."""
    by_name = {name.removeprefix(prefix): name for name in known}
    similar = difflib.get_close_matches(variable.removeprefix(prefix), by_name, n=1)
    return f"the nearest is {by_name[similar[0]]}" if similar else ""
