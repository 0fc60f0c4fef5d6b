"""Stages: each command is one function; its decorator checks the options and stamps the record."""

from __future__ import annotations

import contextlib
import functools
import inspect
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from chestx_cli.core.errors import ChestxError, command_line, in_study, study_of
from chestx_cli.core.machine import environment
from chestx_cli.core.options import Declared, coerced, declared_fields, groups_of, methods_of, options_of
from chestx_cli.core.progress import Reporter, current_reporter
from chestx_cli.core.record import Answer, Options, Record, Stamp, jsonable
from chestx_cli.core.signature import docstring_of, refuse_unknown

if TYPE_CHECKING:
    from collections.abc import Sequence

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R", bound=Record)
S = TypeVar("S", bound=Record)


@dataclass(frozen=True, kw_only=True)
class Shell:
    """How a shell has called a stage, for command lines that are typed again.

    They contain all options in `configured`: as a file or a variable sets them, leaving one out does not mean its
    default. They end with `words`, such as those that name the file.
    """

    configured: frozenset[str] = frozenset()
    words: tuple[str, ...] = ()


@dataclass
class Run:
    """One call of a stage: its options, its reporter, and the hashes of the inputs read so far.

    `line` is the command as typed. `command` and `options` go into records: no local paths, and only options that
    affect the result. A stage reads its options from its parameters, not from here.
    """

    line: str
    command: str
    options: Options
    reporter: Reporter
    inputs: dict[str, str] = field(default_factory=dict)
    data_stamps: tuple[str, ...] = ()
    # Released when the stage ends, with or without an error.
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    started_s: float = field(default_factory=time.perf_counter)

    def uses(self, name: str, sha256: str) -> None:
        """Record that the result depends on a file with this hash."""
        self.inputs[name] = sha256

    def stamped(self, data_stamps: Sequence[str]) -> None:
        """Add data warnings, such as UNGROUPED, to every table made from now on."""
        self.data_stamps = tuple(dict.fromkeys((*self.data_stamps, *data_stamps)))

    def warn(self, text: str) -> None:
        """Show a warning; commands that it names get this command's study."""
        self.reporter.warn(in_study(text, study_of(self.line)))

    def stamp(self) -> Stamp:
        """Return the stamp for a record created now."""
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
        """Run another stage; show its command line but not its record."""
        self.reporter.command(stage.command_line(*args, **kwargs))
        return stage.run(self.reporter, *args, **kwargs)

    def call(self, stage: Stage[Q, S], *args: Q.args, **kwargs: Q.kwargs) -> S:
        """Run another stage; show its command line, then its record."""
        record = self.make(stage, *args, **kwargs)
        self.reporter.result(record)
        return record


class Stage(Generic[P, R]):
    """A command as a function. Called from Python it is silent outside `progress()`; `run` takes a reporter.

    `summary` is the first paragraph of the docstring, `examples` are command lines shown in the help, and `after` is
    the command that precedes it in the list of commands (default: last). `answer` computes the answer from the
    record, for commands whose answer needs nothing else. `is_declared` tells of arguments whether a document declares
    what the command makes, so that configuration must not change it. `check` raises UsageError for options that do not
    go together, before the function is called; a configured one that has no effect is then left out. `methods` is the
    parameter that selects a method and the marker with their registry; None for a command without methods.
    """

    def __init__(
        self,
        function: Callable[Concatenate[Run, P], R],
        *,
        examples: tuple[str, ...] = (),
        after: str = "",
        answer: Callable[[Any], Answer] | None = None,
        is_declared: Callable[[Options], bool] | None = None,
        check: Callable[[Options], None] | None = None,
    ) -> None:
        functools.update_wrapper(self, function, assigned=("__module__", "__name__", "__qualname__"))
        self.function = function
        self.answer = answer
        self.is_declared = is_declared
        self.check = check
        self.name = function.__name__
        self.examples = examples
        self.after = after
        self.summary = " ".join(inspect.cleandoc(function.__doc__ or "").partition("\n\n")[0].split())
        self._stage_options = options_of(function)
        self._groups = groups_of(function)
        self.methods = methods_of(function)

    def __repr__(self) -> str:
        return f"<command chestx.{self.name}>"

    # Computed on access: the choices come from registries, which load plugins.
    @property
    def __doc__(self) -> str:  # type: ignore[override]  # of an object and not of its class
        """The text that `help()` shows."""
        return docstring_of(self.function, self.options)

    @property
    def options(self) -> dict[str, Declared]:
        """Return the options by name, in order, including those of all registered methods."""
        if self.methods is None:
            return self._stage_options
        of_method, methods = self.methods
        declared: dict[str, Declared] = {}
        for name in inspect.signature(self.function).parameters:
            if name == of_method:
                declared.update(methods.declared(name, self._stage_options))
            for option in declared_fields(self._groups[name]) if name in self._groups else (name,):
                if option in self._stage_options:
                    declared[option] = self._stage_options[option]
        return declared

    @property
    def __signature__(self) -> inspect.Signature:
        """The signature that callers see."""
        parameters = [parameter.replace(annotation=kind) for parameter, kind, _ in self.options.values()]
        return inspect.signature(self.function).replace(parameters=parameters)

    def load(self) -> Stage[P, R]:
        """Return this stage, which is already loaded."""
        return self

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the stage; show progress inside `progress()`."""
        return self.run(current_reporter(), *args, **kwargs)

    def command_line(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return the command line for these arguments; options with their default value are omitted."""
        return self._line(self.__signature__.bind_partial(*args, **kwargs).arguments)

    def recorded_line(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return the command line as a record's stamp stores it: without local paths."""
        return self._line(self.__signature__.bind_partial(*args, **kwargs).arguments, shared=True)

    def run(self, reporter: Reporter, *args: P.args, **kwargs: P.kwargs) -> R:
        """Check the options, run the function and return its record."""
        return self.run_from(Shell(), reporter, *args, **kwargs)

    def run_from(self, shell: Shell, reporter: Reporter, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run as a shell has called it; see `run`."""
        refuse_unknown(self.name, kwargs, self.options)
        bound = self.__signature__.bind(*args, **kwargs)
        bound.apply_defaults()
        typed = dict(bound.arguments)
        for name, (_, kind, opt) in self._stage_options.items():
            typed[name] = opt.check(name, coerced(typed[name], kind))
        values = {name: typed[name] for name in self._stage_options}
        declared = self.options
        for group, kind in self._groups.items():
            values[group] = kind(**{name: values.pop(name) for name in declared_fields(kind)})
        if self.methods:
            of_method, methods = self.methods
            method = declared[of_method].opt.check(of_method, typed[of_method])
            known = declared_fields(methods.registry[method])
            method_values = {
                name: value for name, value in typed.items() if name not in self._stage_options and name != of_method
            }
            shared_values = {name: value for name, value in values.items() if name in known}
            values[of_method] = chosen = methods.make(method, {**method_values, **shared_values})
            typed.update({name: getattr(chosen, name) if name in known else None for name in method_values})
            declared = {
                name: option for name, option in declared.items() if option.opt.defaults is None or name in known
            }
        document = {name: opt.shared(typed[name]) for name, (_, _, opt) in declared.items() if opt.identity}
        with contextlib.ExitStack() as held:
            line = " ".join(filter(None, (self._line(typed, spelled=shell.configured), command_line(shell.words))))
            command = self._line(typed, shared=True)
            run = Run(line=line, command=command, options=document, reporter=reporter, held=held)
            try:
                if self.check is not None:
                    self.check(typed)
                # Shown while no named step is running.
                held.enter_context(reporter.progress(f"chestx {self.name}", None))
                record = self.function(run, **values)  # type: ignore[call-arg]  # checked above
            except ChestxError as error:
                # If this command ran another one that failed, the remedy names that one first.
                error.outer = bool(error.command)
                error.command = error.command or line
                raise
        return record if self.answer is None else record.replace(answer=self.answer(record))

    def _line(self, values: Options, *, shared: bool = False, spelled: Collection[str] = frozenset()) -> str:
        """Return the command line for `values`, without those that are defaults and not in `spelled`.

        With `shared`, paths are replaced by their placeholders.
        """
        words = ["chestx", self.name]
        for name, (parameter, _, opt) in self.options.items():
            default = parameter.default
            if opt.defaults is not None and self.methods:
                of_method, methods = self.methods
                default = opt.defaults.get(values.get(of_method, methods.default))
            value = values.get(name, default)
            if opt.argument:
                items = value if isinstance(value, tuple) else () if value is None else (value,)
                # Paths share one placeholder, which is written once.
                words.extend(map(_argument, dict.fromkeys(map(opt.shared, items)) if shared else items))
            elif name in spelled or (value != default and not (value is None and opt.defaults is not None)):
                flag = opt.flag_off(name) if value is False else opt.flag_of(name)
                text = None if isinstance(value, bool) else opt.show(opt.shared(value) if shared else value)
                # As --flag=value, a value that begins with a hyphen cannot be parsed as a flag.
                words += [flag] if text is None else [f"{flag}={text}"] if text.startswith("-") else [flag, text]
        return command_line(words)


def _argument(value: object) -> str:
    """Return an argument as text; `./` keeps a path that begins with a hyphen from being parsed as a flag."""
    text = str(value)
    return f"./{text}" if text.startswith("-") and isinstance(value, Path) else text


def stage(
    *,
    examples: tuple[str, ...] = (),
    after: str = "",
    answer: Callable[[Any], Answer] | None = None,
    is_declared: Callable[[Options], bool] | None = None,
    check: Callable[[Options], None] | None = None,
) -> Callable[[Callable[Concatenate[Run, P], R]], Stage[P, R]]:
    """Return a decorator that turns a function with a `Run` as its first parameter into a command; see `Stage`."""
    return lambda function: Stage(
        function, examples=examples, after=after, answer=answer, is_declared=is_declared, check=check
    )


def stage_of_fields(
    *,
    examples: tuple[str, ...] = (),
    after: str = "",
    answer: Callable[[Any], Answer] | None = None,
    check: Callable[[Options], None] | None = None,
) -> Callable[[Callable[Concatenate[Run, ...], R]], Stage[..., R]]:
    """Like `stage`, for a function that takes options as fields of dataclasses, marked by `Methods` or `FIELDS`.

    Callers give the options one by one, which the function's signature does not show a type checker; `run` checks them.
    """
    return lambda function: Stage(function, examples=examples, after=after, answer=answer, check=check)
