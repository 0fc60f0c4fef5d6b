"""Help texts: options in groups, in lines of at most 80 columns, with complete defaults and choices."""

from __future__ import annotations

import inspect
import textwrap
import typing
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand, TyperGroup

from chestx_cli.cli.errors import CommandGroup
from chestx_cli.core.options import METHOD, RERUN, TRAINING, Declared, Opt
from chestx_cli.core.printable import printable
from chestx_cli.core.shared_options import CONFIG_FLAG

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chestx_cli.core.command import Stage

WIDTH = 80
# Column of the texts; a longer flag is followed by its text at once.
TEXT_COLUMN = 27
SUMMARY_COLUMN = 16
COMMON, ARGUMENTS, OUTPUT = "Common", "Arguments", "Output"
OUTPUT_FLAGS = (
    ("--json", "Print one JSON document and nothing else."),
    ("--full", "Print every table and note, not the answer alone."),
    ("--debug", "Show the traceback of an error."),
    (f"{CONFIG_FLAG} FILE", "Options not from chestx.toml but from FILE, or none."),
    ("-h, --help", "Show this help."),
)
STEPS = (
    ("chestx split data/", "audit the images, split them by patient"),
    ("chestx train", "train the baseline"),
    ("chestx prune | quantize", "make smaller variants; or search: chestx compress"),
    ("chestx evaluate", "which is as good, and which to ship"),
    ("chestx report", "everything on one page"),
)


def command_class(stage: Stage[..., Any]) -> type[TyperCommand]:
    """Return the Typer command class of a stage, whose help is generated from the stage's options."""

    class StageCommand(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            formatter.write(help_of(stage, ctx.command_path))

    return StageCommand


def group_class(about: str, summaries: Mapping[str, str]) -> type[TyperGroup]:
    """Return the class of the whole command line, whose help shows a study step by step, then all commands."""
    lines = [
        *textwrap.wrap(about, WIDTH),
        "",
        "A study, step by step:",
        *(line for command, text in STEPS for line in _lines(command, text)),
        "",
        "Commands (chestx COMMAND --help shows the options of one):",
        *(line for name, summary in summaries.items() for line in _wrapped(f"  {name}", summary, SUMMARY_COLUMN)),
        "",
        "--version shows the version, --install-completion completes commands with Tab.",
    ]

    class Group(CommandGroup):
        def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - the name that Typer calls it by
            formatter.write("\n".join(map(printable, lines)) + "\n")

    return Group


def help_of(stage: Stage[..., Any], program: str) -> str:
    """Return the help of a command as lines of at most 80 columns."""
    groups = _groups(stage.options)
    words = " ".join(_argument(name, declared) for name, declared in groups.get(ARGUMENTS, []))
    paragraphs = [" ".join(part.split()) for part in inspect.cleandoc(stage.function.__doc__ or "").split("\n\n")]
    lines = [f"Usage: {program} {words} [OPTIONS]".replace("  ", " "), ""]
    for paragraph in paragraphs:
        lines += [*textwrap.wrap(paragraph, WIDTH), ""]
    for title, options in groups.items():
        lines.append(f"{title}:")
        for name, declared in options:
            lines += _lines_of(name, declared, _help_under(title, declared.opt))
        lines.append("")
    own = {declared.opt.flag_of(name) for name, declared in stage.options.items()}
    shown = [(flag, text) for flag, text in OUTPUT_FLAGS if flag.partition(" ")[0] not in own]
    lines += [f"{OUTPUT}:", *(line for flag, text in shown for line in _lines(flag, text))]
    if stage.examples:
        lines += ["", "Examples:", *(f"  {example}" for example in stage.examples)]
    return "\n".join(map(printable, lines)) + "\n"


def _groups(options: dict[str, Declared]) -> dict[str, list[tuple[str, Declared]]]:
    """Return the options by heading; headings of options that only some methods have name these methods."""
    by_title: dict[str, list[tuple[str, Declared]]] = {ARGUMENTS: [], METHOD: []}
    methods = next((list(d.opt.choices or ()) for n, d in options.items() if n == "method" and d.opt.panel), [])
    for name, declared in options.items():
        opt = declared.opt
        taking = list(opt.defaults or ())
        title = opt.panel or COMMON
        if opt.argument:
            title = ARGUMENTS
        elif opt.panel == METHOD and taking and taking != methods:
            title = f"{METHOD} {', '.join(taking)}"
        by_title.setdefault(title, []).append((name, declared))
    order = [
        ARGUMENTS,
        METHOD,
        *(title for title in by_title if title.startswith(f"{METHOD} ")),
        COMMON,
        TRAINING,
        RERUN,
    ]
    return {title: by_title[title] for title in order if by_title.get(title)}


def _help_under(title: str, opt: Opt) -> str:
    """Return the help of an option, without the methods' names if the heading already lists them."""
    shared = title.startswith(f"{METHOD} ") and len(set((opt.helps or {}).values())) == 1
    return opt.help if shared else opt.help_by_methods()


def _lines_of(name: str, declared: Declared, text: str) -> list[str]:
    opt, parameter = declared.opt, declared.parameter
    if opt.argument:
        flag = opt.metavar or name.upper()
    else:
        flag = opt.flag_of(name)
        if parameter.default is True or any(value is True for value in (opt.defaults or {}).values()):
            flag = f"{flag}/{opt.flag_off(name)}"
        elif not _is_switch(declared):
            flag = f"{flag} {declared.placeholder}"
    default = _default_of(declared)
    text = f"{text.rstrip('.')}."
    lines = _lines(flag, f"{text} [{default}]" if default else text)
    if default and len(lines) > 1:
        # The default gets its own line, so that it is easy to find and never broken.
        lines = [*_lines(flag, text), *_lines("", f"[{default}]")]
    if opt.meanings is not None:
        lines += [line for choice, meaning in opt.meanings.items() for line in _lines(f"  {choice}", meaning)]
    elif opt.choices is not None:
        lines += _lines("", ", ".join(opt.choices))
    return lines


def _lines(flag: str, text: str) -> list[str]:
    """Return a flag with its text, further lines aligned with the first."""
    return _wrapped(f"  {flag}", text, TEXT_COLUMN)


def _wrapped(head: str, text: str, column: int) -> list[str]:
    # Break neither words nor at hyphens: users copy names from here.
    wrapper = textwrap.TextWrapper(WIDTH, break_on_hyphens=False, break_long_words=False)
    wrapper.initial_indent = head.ljust(column - 2) + "  "
    wrapper.subsequent_indent = " " * column
    return wrapper.wrap(text) or [head]


def _argument(name: str, declared: Declared) -> str:
    word = declared.opt.metavar or name.upper()
    if typing.get_origin(declared.kind) is tuple:
        word += "..."
    return word if declared.parameter.default is inspect.Parameter.empty else f"[{word}]"


def _is_switch(declared: Declared) -> bool:
    return declared.kind is bool or bool in typing.get_args(declared.kind)


def _default_of(declared: Declared) -> str:
    opt, value = declared.opt, declared.parameter.default
    if opt.defaults:
        return opt.shown_defaults()
    return "" if value is inspect.Parameter.empty else opt.shown_default(value)
