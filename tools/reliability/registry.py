"""The groups of figures: each module of `groups`, found by its name and imported only when it is measured."""

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
    """What a group is measured with: its folder, one shared by all groups, what runs commands, how long it may take."""

    work: Path
    shared: Path
    at: Children
    length: Length

    def choose(self, *, short: T, full: T) -> T:
        """Return the size for the chosen length: a few seconds, or the full promised size."""
        return short if self.length == "short" else full


Group = Callable[[Setting], Sequence[Figure]]


def group_names() -> tuple[str, ...]:
    """Return all groups, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(groups.__path__)))


def group(name: str) -> Group:
    """Return the function that measures a group."""
    found: Group = importlib.import_module(f"{groups.__name__}.{name}").measure
    return found
