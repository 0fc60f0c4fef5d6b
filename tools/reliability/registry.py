"""The groups: modules of `groups`, found by name and imported only when they are measured."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from tools.reliability import groups
from tools.reliability.children import Children
from tools.reliability.results import Figure

T = TypeVar("T")
Length = Literal["short", "full"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Setting of a group: its folder, a folder shared by all groups, the command runner, and the length."""

    work: Path
    shared: Path
    at: Children
    length: Length

    def choose(self, *, short: T, full: T) -> T:
        """Return the size for the selected length: a few seconds, or the full published size."""
        return short if self.length == "short" else full


Group = Callable[[Setting], Sequence[Figure]]


def group_names() -> tuple[str, ...]:
    """Return all groups, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(groups.__path__)))


def group(name: str) -> Group:
    """Return the function that measures a group."""
    found: Group = importlib.import_module(f"{groups.__name__}.{name}").measure
    return found
