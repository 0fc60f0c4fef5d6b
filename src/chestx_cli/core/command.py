"""Stages: one command is one function; the decorator checks its options and stamps its record."""

from __future__ import annotations

import contextlib
import functools
import inspect
import time
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from chestx_cli.core.errors import ChestxError
from chestx_cli.core.machine import environment
from chestx_cli.core.options import command_line, options_of
from chestx_cli.core.progress import Reporter, current_reporter
from chestx_cli.core.record import Record, Stamp, jsonable
from chestx_cli.core.signature import docstring_of, refuse_unknown

if TYPE_CHECKING:
    from collections.abc import Sequence

P = ParamSpec("P")
R = TypeVar("R", bound=Record)


@dataclass
class Run:
    """One call of a stage: its options, its reporter, and what it has read so far.

    `command` and `shared_options` are as records keep them: without the paths that were typed.
    """

    command: str
    options: dict[str, Any]
    shared_options: dict[str, Any]
    reporter: Reporter
    inputs: dict[str, str] = field(default_factory=dict)
    data_stamps: tuple[str, ...] = ()
    # What is given back when the stage ends, however it ends.
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    started_s: float = field(default_factory=time.perf_counter)

    def uses(self, name: str, sha256: str) -> None:
        """Note that the result depends on a file with this hash."""
        self.inputs[name] = sha256

    def stamped(self, data_stamps: Sequence[str]) -> None:
        """Note what must stand before every table that is made from here on, such as UNGROUPED."""
        self.data_stamps = tuple(dict.fromkeys((*self.data_stamps, *data_stamps)))

    def stamp(self) -> Stamp:
        """Return the stamp of a record made now."""
        return Stamp(
            command=self.command,
            options=jsonable(self.shared_options),
            inputs=dict(self.inputs),
            environment=environment(),
            created=datetime.now(UTC).isoformat(timespec="milliseconds"),
            duration_s=round(time.perf_counter() - self.started_s, 3),
            data_stamps=self.data_stamps,
        )

    def call(self, stage: Stage[..., R], **values: Any) -> R:
        """Run another stage in view of the user: its command line, then its record."""
        self.reporter.command(command_line(stage.name, stage.function, values))
        record = stage.run(self.reporter, **values)
        self.reporter.result(record)
        return record


class Stage(Generic[P, R]):
    """A command as a function: called from Python it is silent outside of `progress()`, `run` takes a reporter."""

    def __init__(self, function: Callable[Concatenate[Run, P], R]) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.name = function.__name__
        self.options = options_of(function)
        parameters = list(inspect.signature(function).parameters.values())
        self.__signature__ = inspect.signature(function).replace(parameters=parameters[1:])
        self.__doc__ = docstring_of(function, self.options)

    def __repr__(self) -> str:
        return f"<command chestx.{self.name}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run, and show progress where it was requested."""
        return self.run(current_reporter(), *args, **kwargs)

    def run(self, reporter: Reporter, *args: Any, **kwargs: Any) -> R:
        """Check the options, run the function, return its record."""
        refuse_unknown(self.name, kwargs, self.options)
        bound = self.__signature__.bind(*args, **kwargs)
        bound.apply_defaults()
        values = dict(bound.arguments)
        for name, (_, kind, opt) in self.options.items():
            values[name] = opt.check(name, _coerced(values[name], kind))
        identity = {name: opt for name, (_, _, opt) in self.options.items() if opt.identity}
        with contextlib.ExitStack() as held:
            run = Run(
                command=command_line(self.name, self.function, values, shared=True),
                options={name: values[name] for name in identity},
                shared_options={name: opt.shared(values[name]) for name, opt in identity.items()},
                reporter=reporter,
                held=held,
            )
            try:
                return self.function(run, **values)  # type: ignore[call-arg]  # checked above
            except ChestxError as error:
                # Of a command that runs others the one that failed is to be given again first.
                error.outer = bool(error.command)
                error.command = error.command or command_line(self.name, self.function, values)
                raise


def _coerced(value: Any, kind: Any) -> Any:
    """Return what a Python caller gave in the type that the stage declares: texts as paths, lists or one as tuples."""
    if value is not None and (kind is Path or Path in typing.get_args(kind)):
        return Path(value)
    if typing.get_origin(kind) is tuple:
        return tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return value


def stage(function: Callable[Concatenate[Run, P], R]) -> Stage[P, R]:
    """Make a command of a function whose first parameter is its `Run`."""
    return Stage(function)
