"""Stages: one command is one function; the decorator checks its options and stamps its record."""

from __future__ import annotations

import contextlib
import functools
import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from chestx_cli.core.errors import ChestxError, command_line
from chestx_cli.core.machine import environment
from chestx_cli.core.options import Declared, coerced, declared_fields, methods_of, options_of
from chestx_cli.core.progress import Reporter, current_reporter
from chestx_cli.core.record import Answer, Record, Stamp, jsonable
from chestx_cli.core.signature import docstring_of, refuse_unknown

if TYPE_CHECKING:
    from collections.abc import Sequence

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R", bound=Record)
S = TypeVar("S", bound=Record)


@dataclass
class Run:
    """One call of a stage: its options, its reporter, and what it has read so far.

    `command` and `options`, the document of those that make another result, are as records keep them: without the paths
    that were typed, which `line` has. A stage reads its options from its parameters.
    """

    line: str
    command: str
    options: Mapping[str, Any]
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
            options=jsonable(dict(self.options)),
            inputs=dict(self.inputs),
            environment=environment(),
            created=datetime.now(UTC).isoformat(timespec="milliseconds"),
            duration_s=round(time.perf_counter() - self.started_s, 3),
            data_stamps=self.data_stamps,
        )

    def make(self, stage: Stage[Q, S], *args: Q.args, **kwargs: Q.kwargs) -> S:
        """Run another stage and show its command line, but not its record."""
        self.reporter.command(stage.command_line(*args, **kwargs))
        return stage.run(self.reporter, *args, **kwargs)

    def call(self, stage: Stage[Q, S], *args: Q.args, **kwargs: Q.kwargs) -> S:
        """Run another stage in view of the user: its command line, then its record."""
        record = self.make(stage, *args, **kwargs)
        self.reporter.result(record)
        return record


class Stage(Generic[P, R]):
    """A command as a function: called from Python it is silent outside of `progress()`, `run` takes a reporter.

    Its docstring's first paragraph is its `summary`; `examples` are command lines that its help shows, and `after` is
    the command that it follows in the list of them, at whose end it stands by default. `answer` makes the answer of
    its record where that is a function of the record alone. `methods` has the parameter that names one of several
    methods, and their registry; None for a command without.
    """

    def __init__(
        self,
        function: Callable[Concatenate[Run, P], R],
        *,
        examples: tuple[str, ...] = (),
        after: str = "",
        answer: Callable[[Any], Answer] | None = None,
    ) -> None:
        functools.update_wrapper(self, function, assigned=("__module__", "__name__", "__qualname__"))
        self.function = function
        self.answer = answer
        self.name = function.__name__
        self.examples = examples
        self.after = after
        self.summary = " ".join(inspect.cleandoc(function.__doc__ or "").partition("\n\n")[0].split())
        self._own = options_of(function)
        self.methods = methods_of(function)

    def __repr__(self) -> str:
        return f"<command chestx.{self.name}>"

    # Made when it is read: choices are in registries, which load plugins.
    @property
    def __doc__(self) -> str:  # type: ignore[override]  # of an object and not of its class
        """What `help()` shows."""
        return docstring_of(self.function, self.options)

    @property
    def options(self) -> dict[str, Declared]:
        """Return each option by name, in order: its parameter, its type and its `Opt`; of methods, all registered."""
        if self.methods is None:
            return self._own
        of_method, methods = self.methods
        declared: dict[str, Declared] = {}
        for name in inspect.signature(self.function).parameters:
            if name == of_method:
                declared.update(methods.declared(name, self._own))
            elif name in self._own:
                declared[name] = self._own[name]
        return declared

    @property
    def __signature__(self) -> inspect.Signature:
        """The signature as callers see it."""
        parameters = [parameter.replace(annotation=kind) for parameter, kind, _ in self.options.values()]
        return inspect.signature(self.function).replace(parameters=parameters)

    def load(self) -> Stage[P, R]:
        """Return the command itself: it is loaded already."""
        return self

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run, and show progress where it was requested."""
        return self.run(current_reporter(), *args, **kwargs)

    def command_line(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return what a user would type to call the stage so; options at their default are left out."""
        return self._line(self.__signature__.bind_partial(*args, **kwargs).arguments)

    def recorded_line(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return the command line that the stamp of a record made so has: without the paths of this machine."""
        return self._line(self.__signature__.bind_partial(*args, **kwargs).arguments, shared=True)

    def run(self, reporter: Reporter, *args: P.args, **kwargs: P.kwargs) -> R:
        """Check the options, run the function, return its record."""
        refuse_unknown(self.name, kwargs, self.options)
        bound = self.__signature__.bind(*args, **kwargs)
        bound.apply_defaults()
        typed = dict(bound.arguments)
        for name, (_, kind, opt) in self._own.items():
            typed[name] = opt.check(name, coerced(typed[name], kind))
        values = {name: typed[name] for name in self._own}
        declared = self.options
        if self.methods:
            of_method, methods = self.methods
            method = declared[of_method].opt.check(of_method, typed[of_method])
            known = declared_fields(methods.registry[method])
            given = {name: value for name, value in typed.items() if name not in self._own and name != of_method}
            own = {name: value for name, value in values.items() if name in known}
            values[of_method] = chosen = methods.make(method, {**given, **own})
            typed.update({name: getattr(chosen, name) if name in known else None for name in given})
            declared = {name: one for name, one in declared.items() if one.opt.defaults is None or name in known}
        document = {name: opt.shared(typed[name]) for name, (_, _, opt) in declared.items() if opt.identity}
        with contextlib.ExitStack() as held:
            line, command = self._line(typed), self._line(typed, shared=True)
            run = Run(line=line, command=command, options=document, reporter=reporter, held=held)
            try:
                # What has no step of its own is waited for as the command.
                held.enter_context(reporter.progress(f"chestx {self.name}", None))
                record = self.function(run, **values)  # type: ignore[call-arg]  # checked above
            except ChestxError as error:
                # Of a command that runs others the one that failed is to be given again first.
                error.outer = bool(error.command)
                error.command = error.command or line
                raise
        return record if self.answer is None else record.replace(answer=self.answer(record))

    def _line(self, values: Mapping[str, Any], *, shared: bool = False) -> str:
        """Return the command line of `values`; `shared` puts what stands for a path in help texts for each path."""
        words = ["chestx", self.name]
        for name, (parameter, _, opt) in self.options.items():
            default = parameter.default
            if opt.defaults is not None and self.methods:
                of_method, methods = self.methods
                default = opt.defaults.get(values.get(of_method, methods.default))
            value = values.get(name, default)
            if opt.argument:
                given = value if isinstance(value, tuple) else () if value is None else (value,)
                # Without paths several of them are one word.
                words.extend(map(_argument, dict.fromkeys(map(opt.shared, given)) if shared else given))
            elif value != default and not (value is None and opt.defaults is not None):
                flag = opt.flag_off(name) if value is False else opt.flag_of(name)
                text = None if isinstance(value, bool) else opt.show(opt.shared(value) if shared else value)
                # In one word, a value that begins with a hyphen cannot be taken for a flag.
                words += [flag] if text is None else [f"{flag}={text}"] if text.startswith("-") else [flag, text]
        return command_line(words)


def _argument(value: object) -> str:
    """Return an argument as it is typed; a path that begins with a hyphen would be taken for a flag."""
    text = str(value)
    return f"./{text}" if text.startswith("-") and isinstance(value, Path) else text


def stage(
    *, examples: tuple[str, ...] = (), after: str = "", answer: Callable[[Any], Answer] | None = None
) -> Callable[[Callable[Concatenate[Run, P], R]], Stage[P, R]]:
    """Return a decorator that makes a command of a function whose first parameter is its `Run`; see `Stage`."""
    return lambda function: Stage(function, examples=examples, after=after, answer=answer)


def stage_of_methods(
    *, examples: tuple[str, ...] = (), after: str = "", answer: Callable[[Any], Answer] | None = None
) -> Callable[[Callable[Concatenate[Run, ...], R]], Stage[..., R]]:
    """Return what `stage` does for a function with a parameter marked by `Methods`, whose options are all methods'.

    Which these are is known when they are registered, so no type checker can hold callers to them: `run` does.
    """
    return lambda function: Stage(function, examples=examples, after=after, answer=answer)
