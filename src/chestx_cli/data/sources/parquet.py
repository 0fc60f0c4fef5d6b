"""Tables in Parquet: every cell is converted to text as in a CSV file, so that the same checks apply to both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.core.errors import DataError
from chestx_cli.core.files import read_regular

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from pyarrow import ChunkedArray

SUFFIX = ".parquet"
# Compression can store a billion equal values in a small file.
_MAX_ROWS = 100_000_000


def read_parquet(path: Path, what: str, max_bytes: int) -> pd.DataFrame:
    """Return the table of a Parquet file with every cell as text, empty if missing; columns of lists are left out.

    `what` names the table in errors. Raises DataError if it cannot be read or pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f"{path} is Parquet, which is read by pyarrow, and that is not installed",
            'run pip install "chestx-cli[parquet]", or save the table as CSV',
        ) from error
    import pandas as pd

    try:
        content = read_regular(path, max_bytes)
    except OSError as error:
        raise DataError(f"cannot read {what} {path}: {error.strerror or error}", "make it readable") from error
    try:
        file = parquet.ParquetFile(pyarrow.BufferReader(content))
        if file.metadata.num_rows > _MAX_ROWS:
            raise DataError(f"{what} {path} has more than {_MAX_ROWS:,} rows", "divide it")
        table = file.read()
    # pyarrow raises OSError for damaged bytes.
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {what} {path}: it is no Parquet file, or damaged", "save it again") from error
    if len(set(table.column_names)) < len(table.column_names):
        raise DataError(f"{what} {path} has two columns of one name", "remove one of them")
    columns = {
        name: _texts(column)
        for name, column in zip(table.column_names, table.columns, strict=True)
        if not pyarrow.types.is_nested(column.type)
    }
    return pd.DataFrame(columns, dtype=object)


def _texts(column: ChunkedArray) -> pd.Series[str]:
    """Return a column as text; integers that a library stored as floats because of missing values become integers."""
    import pandas as pd
    import pyarrow
    import pyarrow.compute

    if pyarrow.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pyarrow.types.is_floating(column.type):
        whole = column.drop_null().to_numpy()
        if (whole == whole.round()).all() and (abs(whole) < 2**53).all():
            column = column.cast(pyarrow.int64())
    if pyarrow.types.is_binary(column.type) or pyarrow.types.is_large_binary(column.type):
        texts = [bytes(cell or b"").decode("utf-8", "replace") for cell in column.to_pylist()]
    else:
        texts = column.cast(pyarrow.large_string()).fill_null("").to_pylist()
    return pd.Series(texts, dtype=object)
