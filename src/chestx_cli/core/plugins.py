"""Plugins: modules of installed packages that register entries of their own, found by an entry-point group."""

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
    """Whether this process has imported its plugins, and the error if one of them could not be."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._begun = False
        self._failure: PluginError | None = None

    def load(self) -> None:
        with self._lock:
            # A plugin that reads a registry while it is imported gets what is registered by then.
            if not self._begun:
                self._begun = True
                try:
                    for point in _entry_points():
                        _import(point)
                except PluginError as error:
                    self._failure = error
            if self._failure is not None:
                raise self._failure


_PLUGINS = _Plugins()


def load_plugins() -> None:
    """Import every plugin, once per process; a registry does so before it is read.

    Raises PluginError, at every call, where a plugin cannot be imported or takes a name that is taken.
    """
    _PLUGINS.load()


def _entry_points() -> list[EntryPoint]:
    if not any(_names_plugins(Path(folder)) for folder in sys.path):
        return []
    from importlib.metadata import entry_points

    return sorted(entry_points(group=GROUP), key=lambda point: point.name)


def _names_plugins(folder: Path) -> bool:
    """Return whether a package installed in a folder names a plugin.

    importlib.metadata gives the same answer, but importing it takes 35 ms of the 150 that `chestx --help` takes in all;
    this look takes 1 ms for 100 packages.
    """
    wanted = f"[{GROUP}]".encode()
    try:
        files = [*folder.glob("*.dist-info/entry_points.txt"), *folder.glob("*.egg-info/entry_points.txt")]
        return any(wanted in file.read_bytes() for file in files)
    except OSError:
        # An entry of sys.path need not be a folder, nor be readable.
        return False


def _import(point: EntryPoint) -> None:
    try:
        point.load()
    # Whatever a package of somebody else does when it is imported.
    except Exception as error:
        package = f"{point.dist.name} {point.dist.version}" if point.dist else "a package"
        reason = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
        raise PluginError(
            f"the plugin {point.name} ({point.value}) of {package} cannot be loaded: {reason}",
            f'update that package, or remove it: "pip uninstall {point.dist.name if point.dist else "PACKAGE"}"',
        ) from error
