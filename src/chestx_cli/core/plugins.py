"""Plugins: modules of installed packages that register their own entries, found by their entry-point group."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.core.errors import PluginError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "chestx.plugins"


class _Plugins:
    """State of plugin loading in this process, with the error if a plugin could not be imported."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._begun = False
        self._failure: PluginError | None = None
        self.points: list[EntryPoint] = []

    def load(self) -> None:
        with self._lock:
            # A plugin that reads a registry during its own import sees the entries registered so far.
            if not self._begun:
                self._begun = True
                try:
                    self.points = _entry_points()
                    for point in self.points:
                        _import(point)
                except PluginError as error:
                    self._failure = error
            if self._failure is not None:
                raise self._failure


_PLUGINS = _Plugins()


def load_plugins() -> None:
    """Import every plugin, once per process; registries call this before any read.

    Raises PluginError, at every call, if a plugin cannot be imported or registers a name that is taken.
    """
    _PLUGINS.load()


def fault_of_plugin(error: BaseException) -> PluginError | None:
    """Return an unexpected error as that of the plugin whose code, or code called by it, raised the error.

    None if this package raised it, even when called by a plugin.
    """
    from traceback import walk_tb

    for frame, line in reversed(list(walk_tb(error.__traceback__))):
        module = str(frame.f_globals.get("__name__", ""))
        if _package_of(module) == _package_of(__name__):
            return None
        points = [point for point in _PLUGINS.points if _package_of(point.module) == _package_of(module)]
        if points:
            point = next((point for point in points if point.module == module), points[0])
            # Without the error's text, which may quote private data.
            return PluginError(
                f"the plugin {_shown(point)} failed: {type(error).__name__} in "
                f"{Path(frame.f_code.co_filename).name}, line {line}",
                f"run again with --debug to see why; correct or update that package, or remove it: {_removal(point)}",
            )
    return None


def _package_of(module: str) -> str:
    return module.partition(".")[0]


def _entry_points() -> list[EntryPoint]:
    if not any(_names_plugins(Path(folder)) for folder in sys.path):
        return []
    from importlib.metadata import entry_points

    return sorted(entry_points(group=GROUP), key=lambda point: point.name)


def _names_plugins(folder: Path) -> bool:
    """Return whether a package installed in a folder declares a plugin.

    importlib.metadata gives the same answer, but importing it takes 35 ms of the 150 ms of `chestx --help`; this check
    takes 1 ms for 100 packages.
    """
    header = f"[{GROUP}]".encode()
    try:
        files = [*folder.glob("*.dist-info/entry_points.txt"), *folder.glob("*.egg-info/entry_points.txt")]
        return any(header in file.read_bytes() for file in files)
    except OSError:
        # An entry of sys.path may be no folder, or unreadable.
        return False


def _import(point: EntryPoint) -> None:
    try:
        point.load()
    # A third-party package may raise anything when it is imported.
    except Exception as error:
        reason = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
        raise PluginError(
            f"the plugin {_shown(point)} cannot be loaded: {reason}{_place_in(point, error)}",
            f"correct or update that package, or remove it: {_removal(point)}",
        ) from error


def _place_in(point: EntryPoint, error: BaseException) -> str:
    """Return the last line of the plugin's own code that an error passed, in parentheses; empty if there is none."""
    from traceback import walk_tb

    for frame, line in reversed(list(walk_tb(error.__traceback__))):
        if _package_of(str(frame.f_globals.get("__name__", ""))) == _package_of(point.module):
            return f" ({Path(frame.f_code.co_filename).name}, line {line})"
    return ""


def _shown(point: EntryPoint) -> str:
    package = f"{point.dist.name} {point.dist.version}" if point.dist else "a package"
    return f"{point.name} ({point.value}) of {package}"


def _removal(point: EntryPoint) -> str:
    return f'"pip uninstall {point.dist.name if point.dist else "PACKAGE"}"'
