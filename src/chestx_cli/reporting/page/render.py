"""Rendering of templates, with all text escaped for the output format."""

from __future__ import annotations

import re
from collections.abc import Callable

from chestx_cli.core.printable import printable
from chestx_cli.core.record import NOT_A_DEVICE


def _clean(value: object) -> object:
    """Return text on one line, with control characters and right-to-left marks escaped; other values unchanged."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return printable(value)
    return value


def escape_markdown(value: object) -> str:
    """Return a value as Markdown that displays literally, also in a table cell."""
    text = str(_clean(value)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~$#])", r"\\\1", text)
    # An underscore within a word is not emphasis; escaping it would only make file names hard to read.
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    return re.sub(r"^(\s*\d*)([-+.)])(?=\s)", r"\1\\\2", text)


def render(template: str, **values: object) -> str:
    """Render a template of this package with values; text is escaped for the template's format."""
    import jinja2

    html = template.endswith(".html.j2")
    finalize: Callable[[object], object] = _clean if html else escape_markdown
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("chestx_cli.reporting.page"),
        # HTML escapes would be visible in Markdown, which `finalize` escapes instead.
        autoescape=html,  # noqa: S701 - Markdown is escaped by `finalize`
        finalize=finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(warning=NOT_A_DEVICE, **values)
