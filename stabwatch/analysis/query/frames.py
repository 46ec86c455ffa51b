"""A table as a pandas DataFrame where pandas is installed, else as an Arrow table."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pyarrow as pa
from pyarrow import types


def frame(table: pa.Table, arrow: bool) -> Any:
    """The table as a DataFrame; as it is if `arrow` is set or pandas is not installed."""
    if arrow or find_spec("pandas") is None:
        return table
    data = table.to_pandas()
    for field in table.schema:
        if types.is_list(field.type):  # pandas would show NumPy arrays
            data[field.name] = [None if row is None else list(row) for row in data[field.name]]
    return data


def constant(text: str, length: int) -> pa.Array:
    """A column with the same text in each of its rows."""
    return pa.DictionaryArray.from_arrays(pa.nulls(length, pa.int32()).fill_null(0), pa.array([text], pa.string()))
