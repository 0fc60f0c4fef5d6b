"""One place per kind of thing: backbones, pruning methods, figures, ... are found by name in a registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from chestx_cli.core.errors import PluginError, UsageError
from chestx_cli.core.plugins import load_plugins

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Named entries of one kind, in the order in which they were registered, those of plugins last.

    Reading it loads the plugins first, and raises PluginError where one cannot be loaded. Raises UsageError, naming the
    choices, for a name that is not there.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> T:
        """Register `entry` under `name`; raises PluginError where the name is taken."""
        if name in self._entries:
            raise PluginError(f"there is a {self.kind} {name!r} already", "choose another name")
        self._entries[name] = entry
        return entry

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers what it decorates under `name`."""
        return lambda entry: self.add(name, entry)

    def name_of(self, entry: T) -> str:
        """Return the name under which `entry` is registered."""
        return next(name for name, other in self._entries.items() if other is entry)

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
