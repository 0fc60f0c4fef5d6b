"""The record of `config`: the value of every option, and where it is set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from chestx_cli.core.record import col
from chestx_cli.records.tabular import TabularRecord

# Where a value is set.
BY_DEFAULT, BY_FILE, BY_VARIABLE = "default", "file", "variable"


@dataclass(frozen=True, kw_only=True)
class SettingRow:
    """One option of a command; `value` is text as typed after the flag, on or off of a switch, None for none."""

    command: str = col("Command")
    option: str = col("Option")
    value: str | None = col("Value")
    source: str = col("Source")
    # `FILE, line N`, or a variable's name.
    place: str | None = col("Set by")
    # Whether the command uses the value when nothing is typed; its method may have no use for it.
    is_used: bool = col("Used", default=True)


@dataclass(frozen=True, kw_only=True)
class ConfigRecord(TabularRecord):
    """Values that options have where they are not typed, and the file and the variables that set them."""

    schema: ClassVar[str] = "chestx.config/1"
    title: ClassVar[str] = "Configuration"

    file: str | None = col("File")
    variables: tuple[str, ...] = col("Variables", separator=", ")
    rows: tuple[SettingRow, ...]

    @property
    def configured(self) -> tuple[SettingRow, ...]:
        """Return the options that are set by a file or a variable."""
        return tuple(row for row in self.rows if row.source != BY_DEFAULT)

    @property
    def headline(self) -> str:
        """Return how many options are set, and by what."""
        by = {source: sum(row.source == source for row in self.rows) for source in (BY_FILE, BY_VARIABLE)}
        return f"{by[BY_FILE]} options set by {self.file or 'no file'}, {by[BY_VARIABLE]} by variables"
