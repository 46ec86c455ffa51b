"""Number parsing by Arrow, without importing pandas, which would take half a second."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def float64s(array: pa.Array | pa.ChunkedArray) -> NDArray[np.float64]:
    """Words or numbers as (length,) float64, read-only; a null is any number. Raises ValueError for another word."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    numbers = array.cast(pa.float64())
    return np.frombuffer(numbers.buffers()[1], np.float64, len(numbers), numbers.offset * 8)


def words_as_float64s(data: bytes | NDArray[np.uint8], offsets: NDArray[np.integer]) -> NDArray[np.float64]:
    """Numbers from words in one buffer; word i is from offsets[i] to offsets[i + 1]. Raises ValueError."""
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data)]
    return float64s(pa.Array.from_buffers(pa.string(), len(offsets) - 1, buffers))
