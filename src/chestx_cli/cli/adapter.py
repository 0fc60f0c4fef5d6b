"""Stages as Typer commands: options from annotations, and one mapping from errors to exit codes."""

from __future__ import annotations

import inspect
import os
import re
import sys
import traceback
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from chestx_cli.cli.errors import JSON_FLAG, show_error
from chestx_cli.core.command import Shell, Stage
from chestx_cli.core.errors import COMMAND_IN_TEXT, ChestxError, is_reported, leave_error, quoted
from chestx_cli.core.files import storage_error
from chestx_cli.core.options import Declared, Opt, parse_share
from chestx_cli.core.plugins import fault_of_plugin
from chestx_cli.core.registry import COMMANDS
from chestx_cli.core.shared_options import CONFIG_FLAG, ConfigFile
from chestx_cli.core.signals import Interrupted, handled, obey
from chestx_cli.settings.precedence import Effective, effective
from chestx_cli.settings.sources import Configuration, read_configuration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from chestx_cli.core.progress import Reporter
    from chestx_cli.core.record import Options
    from chestx_cli.settings.sources import Configured

INTERRUPTED = 130
# The parameter of CONFIG_FLAG.
CONFIG = "config"


@dataclass(frozen=True, kw_only=True)
class Call:
    """A parsed command line: all options, the names of those typed, and how to show the result."""

    values: Options
    typed: frozenset[str]
    config: str | None
    as_json: bool
    full: bool


def as_command(name: str, stage: Stage[..., Any]) -> Callable[..., None]:
    """Return a stage as a function that Typer can turn into the command `name`."""

    def command(*, ctx: typer.Context, as_json: bool, full: bool, debug: bool, **values: Any) -> None:
        from rich.console import Console

        # At rich's default of 80 columns for pipes, wide tables would lose numbers.
        out = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
        err = Console(stderr=True, highlight=False)
        for option, (_, kind, _) in stage.options.items():
            if typing.get_origin(kind) is tuple:
                values[option] = tuple(values[option] or ())
        config = values[CONFIG] if CONFIG in stage.options else values.pop(CONFIG)
        # Recognised by its name: Typer does not export the class.
        typed = frozenset(option for option in values if _source_of(ctx, option) == "COMMANDLINE")
        call = Call(values=values, typed=typed, config=config, as_json=as_json, full=full)
        with_exit_codes(lambda: _run(name, stage, call, out, err), err, debug=debug, as_json=as_json)

    parameters = [
        one.parameter.replace(annotation=_annotation(option, one), default=_default(one.parameter, one.opt))
        for option, one in stage.options.items()
    ]
    parameters = [
        inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
        *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters),
        _switch("as_json", JSON_FLAG, "Print the record as one JSON document and nothing else."),
        _switch("full", "--full", "Print every table and note, not the answer alone."),
        _switch("debug", "--debug", "Show the traceback of an error."),
    ]
    if CONFIG not in stage.options:
        parameters.append(_config_parameter())
    # Typer reads `__signature__`, which the type checker does not know.
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by typer
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__name__ = stage.name
    command.__doc__ = _help_text(stage.function.__doc__ or "", stage.examples)
    return command


def _help_text(docstring: str, examples: tuple[str, ...]) -> str:
    """Return a docstring as help: one line per paragraph, wrapped later by the terminal, then the examples."""
    paragraphs = [" ".join(part.split()) for part in inspect.cleandoc(docstring).split("\n\n")]
    label = ["Example:" if len(examples) == 1 else "Examples:"] if examples else []
    return "\n\n".join([*paragraphs, *label, *(f"    {example}" for example in examples)])


def _source_of(ctx: typer.Context, option: str) -> str:
    source = ctx.get_parameter_source(option)
    return source.name if source is not None else ""


def _run(name: str, stage: Stage[..., Any], call: Call, out: Console, err: Console) -> None:
    from chestx_cli.cli.console import ConsoleReporter, show_record

    reporter = ConsoleReporter(out, err, show_results=not call.as_json, full=call.full)
    configured: Mapping[str, Configured] = {}
    # The command that shows the configuration has no options of it, and reads it by itself.
    if CONFIG not in stage.options:
        configured = _configured(name, stage, read_configuration(call.config, os.environ), reporter)
    options = effective(stage, call.values, call.typed, configured)
    _note_used(stage, options, reporter)
    words = (CONFIG_FLAG, call.config) if call.config else ()
    shell = Shell(configured=frozenset(options.used) | (configured.keys() & call.typed), words=words)
    try:
        record = stage.run_from(shell, reporter, **options.values)
    except ChestxError as error:
        error.places = tuple(_places_named(stage, options, error))
        raise
    if call.as_json:
        # Escaped if stdout's encoding lacks characters, so that the document loses none.
        sys.stdout.write(record.to_json(ascii_only=not (sys.stdout.encoding or "").lower().startswith("utf")))
        sys.stdout.flush()
    else:
        show_record(record, out, full=call.full, study=_typed_study(stage, options))
    if record.exit_code:
        raise typer.Exit(record.exit_code)


def _configured(
    name: str, stage: Stage[..., Any], configuration: Configuration, reporter: Reporter
) -> dict[str, Configured]:
    """Return the values that files and variables set for a command; warn of variables without an effect."""
    configuration.require_known(name, stage.options, COMMANDS)
    for sentence in configuration.unknown_variables(COMMANDS):
        reporter.warn(sentence)
    return configuration.of(name, stage.options)


def _note_used(stage: Stage[..., Any], options: Effective, reporter: Reporter) -> None:
    """Report the configured options that affect the result, and where each is set."""
    by_place: dict[str, list[str]] = {}
    for name, one in options.used.items():
        if stage.options[name].opt.identity:
            by_place.setdefault(one.place.partition(", ")[0], []).append(_as_typed(stage, name, one))
    for place, flags in by_place.items():
        reporter.note(f"{place} sets {', '.join(flags)}")


def _as_typed(stage: Stage[..., Any], name: str, one: Configured) -> str:
    opt = stage.options[name].opt
    if isinstance(one.value, bool):
        return opt.flag_of(name) if one.value else opt.flag_off(name)
    return f"{opt.flag_of(name)} {opt.show(one.value)}"


def _places_named(stage: Stage[..., Any], options: Effective, error: ChestxError) -> Iterator[str]:
    """Yield the place of each configured option that an error mentions by its flag or file."""
    # Without commands to type, which contain all options.
    text = f"{error.fact} {COMMAND_IN_TEXT.sub('', error.remedy)}"
    for name, one in options.used.items():
        flag = stage.options[name].opt.flag_of(name)
        is_named = re.search(rf"{flag}(?![\w-])", text) is not None
        if is_named or (isinstance(one.value, Path) and str(one.value) in text):
            yield f"{_as_typed(stage, name, one)} is set by {one.place}"


def _typed_study(stage: Stage[..., Any], options: Effective) -> str:
    """Return the --study value; empty if the next command finds the study without it."""
    if "study" not in stage.options:
        return ""
    used, study = options.used.get("study"), options.values["study"]
    is_found = used.is_shared if used is not None else study == stage.options["study"].parameter.default
    return "" if is_found else quoted(str(study))


def with_exit_codes(work: Callable[[], None], err: Console, *, debug: bool, as_json: bool = False) -> None:
    """Run `work`; turn every error into a message and an exit code (1 failed, 2 usage, 130 interrupted).

    With `as_json` the error is also printed to stdout as one JSON document.
    """
    from chestx_cli.cli.console import plain

    try:
        with handled():
            try:
                work()
            except typer.Exit:
                raise
            except Exception:
                # A library may have converted an interrupt into its own error.
                obey()
                raise
    except typer.Exit:
        # Not a failure: the record that was shown explains its exit code.
        raise
    except KeyboardInterrupt as stop:
        code = stop.exit_code if isinstance(stop, Interrupted) else INTERRUPTED
        if is_reported():
            _leave_at_once(code)
        err.print(plain("interrupted; existing results are unchanged: run the same command to resume"))
        raise typer.Exit(code) from None
    except BrokenPipeError:
        # The reader of the output has ended, like `| head`; the interpreter must not flush to it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    # The outermost layer: an unexpected error is reported as a bug, with a traceback only with --debug.
    except Exception as error:
        expected = _expected(error)
        leave_error(expected)
        if is_reported():
            _leave_at_once(expected.exit_code)
        if debug:
            err.print(plain(traceback.format_exc()), soft_wrap=True)
            err.print(plain("the traceback may contain file names: check it before you share it"), soft_wrap=True)
        show_error(expected, as_json=as_json)
        raise typer.Exit(expected.exit_code) from None


def _leave_at_once(code: int) -> NoReturn:
    """Exit without cleanup, since the launcher reports the error and unloading torch can take seconds."""
    os._exit(code)


def _expected(error: Exception) -> ChestxError:
    if isinstance(error, ChestxError):
        return error
    if isinstance(error, OSError):
        return storage_error(error)
    # torch reports exhausted memory by its own exception class on GPUs, and only by the message on the CPU.
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "not enough memory" in str(error)
    ):
        return ChestxError("out of memory", "lower --batch-size or --image-size, or free some memory")
    if (fault := fault_of_plugin(error)) is not None:
        return fault
    # Without the error's text, which may quote private data.
    at = traceback.extract_tb(error.__traceback__)[-1]
    return ChestxError(
        f"this is a bug in chestx: {type(error).__name__} in {Path(at.filename).name}, line {at.lineno}",
        "run again with --debug, and report what it prints without names of files",
    )


def _annotation(name: str, declared: Declared) -> Any:
    parameter, kind, opt = declared
    # A switch that is off by default may have been switched on by a file.
    is_switch = kind is bool or bool in typing.get_args(kind)
    settings: dict[str, Any] = {"help": opt.help_by_methods(), "show_default": _shown_default(opt, parameter)}
    if opt.choices is not None:
        settings["autocompletion"] = lambda: list(opt.choices or ())
    if not is_switch:
        has_names = opt.choices is not None and not opt.metavar
        settings["metavar"] = f"[{'|'.join(opt.choices or ())}]" if has_names else declared.placeholder
    parse = opt.parse or (parse_share if opt.is_share else None)
    if parse is not None:
        settings["parser"] = _named(parse, opt.metavar or "FLOAT" if opt.parse is None else opt.metavar or "TEXT")
        kind = Any
    if opt.argument:
        if typing.get_origin(kind) is tuple:
            kind = list[str]
        return Annotated[kind, typer.Argument(**settings)]
    flags = f"{opt.flag_of(name)}/{opt.flag_off(name)}" if is_switch else opt.flag_of(name)
    return Annotated[kind, typer.Option(flags, **settings)]


def _shown_default(opt: Opt, parameter: inspect.Parameter) -> str | bool:
    value = parameter.default
    if value is None and opt.defaults:
        return opt.shown_defaults() or False
    if value is inspect.Parameter.empty or value is None or value is False or value == ():
        return False
    return opt.show(value) if opt.parse else True


def _default(parameter: inspect.Parameter, opt: Opt) -> Any:
    if opt.argument and parameter.default == ():
        return None
    return parameter.default


def _named(parse: Callable[[str], Any], metavar: str) -> Callable[[Any], Any]:
    """Return a parser as Typer expects it: it also accepts the default value, and is named as shown in messages."""

    def parser(value: Any) -> Any:
        return parse(value) if isinstance(value, str) else value

    parser.__name__ = metavar
    return parser


def _config_parameter() -> inspect.Parameter:
    kind, opt = typing.get_args(ConfigFile)
    parameter = inspect.Parameter(CONFIG, inspect.Parameter.KEYWORD_ONLY, default=None)
    return parameter.replace(annotation=_annotation(CONFIG, Declared(parameter, kind, opt)))


def _switch(name: str, flag: str, text: str) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[bool, typer.Option(flag, help=text)],
    )
