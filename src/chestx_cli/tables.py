"""Tables that users write: CSV files whose cells are all read as text."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from chestx_cli.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd


def read_text_table(path: Path, what: str, remedy: str) -> pd.DataFrame:
    """Return a CSV file with every cell as text, empty where a line ends early.

    `what` names it in errors. Raises DataError where it cannot be read, or a line has more fields than the heading.
    """
    import pandas as pd

    try:
        with warnings.catch_warnings():
            # pandas would leave the fields away that have no heading, and only mention it.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(path, dtype=object, keep_default_na=False, index_col=False)
    except (ValueError, OSError, pd.errors.ParserWarning) as error:
        raise DataError(f"cannot read {what} {path}: {str(error).strip()}", remedy) from error
