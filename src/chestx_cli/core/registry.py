"""Registries: backbones, pruning methods, figures, ... are looked up by name, one registry per kind."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, runtime_checkable

from chestx_cli.core.errors import PluginError, UsageError
from chestx_cli.core.plugins import load_plugins

if TYPE_CHECKING:
    from chestx_cli.core.command import Stage

T = TypeVar("T")

# Names appear in comma-separated lists, CSV headers and file names.
_NAME = re.compile(r"\w[\w ().-]*")


class Registry(Mapping[str, T], Generic[T]):
    """Named entries of one kind, in order of registration, plugins' entries last.

    Every entry is an instance of `of`. Any read loads the plugins first and raises PluginError if one cannot be
    loaded. An unknown name raises UsageError, which lists the choices.
    """

    def __init__(self, kind: str, *, of: Any) -> None:
        self.kind = kind
        self._of = of
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> T:
        """Register `entry` under `name`; raises PluginError for a name that is taken or invalid, and a wrong type."""
        if not _NAME.fullmatch(name):
            raise PluginError(
                f"{name!r} cannot be the name of a {self.kind}", "use letters, digits, spaces and _ - . ( ) only"
            )
        if not isinstance(entry, self._of):
            expected = {Callable: "a function", type: "a class"}.get(self._of, f"of type {self._of.__name__}")
            raise PluginError(f"the {self.kind} {name!r} is of type {type(entry).__name__}", f"it has to be {expected}")
        if name in self._entries:
            raise PluginError(f"there is a {self.kind} {name!r} already", "choose another name")
        self._entries[name] = entry
        return entry

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers an entry under `name`; raises PluginError as `add` does."""
        if not isinstance(name, str):
            # Used without parentheses, the decorator would register nothing.
            raise PluginError(f"a {self.kind} is registered without a name", 'write register("NAME")')
        return lambda entry: self.add(name, entry)

    def name_of(self, entry: T) -> str:
        """Return the name under which `entry` is registered."""
        return next(name for name, other in self._entries.items() if other is entry)

    def names(self, of: Callable[[T], bool]) -> Collection[str]:
        """Return the names of some entries: a view, so that it loads no plugins before it is read."""
        return _Names(registry=self, of=of)

    def __getitem__(self, name: str) -> T:
        if name not in self:
            raise UsageError(f"unknown {self.kind} {name!r}", f"choose one of {', '.join(self)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        load_plugins()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        load_plugins()
        return iter(self._entries)

    def __len__(self) -> int:
        load_plugins()
        return len(self._entries)


@dataclass(frozen=True, kw_only=True)
class _Names(Collection[str], Generic[T]):
    registry: Registry[T]
    of: Callable[[T], bool]

    def __contains__(self, name: object) -> bool:
        return any(name == one for one in self)

    def __iter__(self) -> Iterator[str]:
        return (name for name, entry in self.registry.items() if self.of(entry))

    def __len__(self) -> int:
        return sum(1 for _ in self)


@runtime_checkable
class Command(Protocol):
    """An entry in the list of commands, such as a function with `@stage`: its summary, and how to load it."""

    @property
    def summary(self) -> str:
        """Return the first paragraph of the command's docstring."""

    def load(self) -> Stage[..., Any]:
        """Return the command itself."""


# Filled by `registries`, which is above all rooms and is imported before any command.
COMMANDS: Registry[Command] = Registry("command", of=Command)
