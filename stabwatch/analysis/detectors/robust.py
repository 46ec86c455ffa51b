"""Robust statistics of a curve. Windows are counted in records, as the cadence of a log may change on the way."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[np.float64]

WINDOW = 51
"""Records of the past that a record is compared with: its median is not moved by excursions of up to 25 records."""
SUSTAINED = 5
"""Records in a row that make an excursion of the whole curve out of one of single batches: in real logs bad batches
and heavy tails last one record, rarely two to four, and spikes fourteen to forty."""
_BLOCK = 32
"""Records over which a scatter is estimated."""
_CHUNK = 1 << 16
"""Windows taken at once, which bounds the memory."""


def scatter(values: Array) -> float:
    """Standard deviation as the median absolute deviation has it; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def print_unit(values: Array) -> float:
    """The least distance between two different values: below it a log cannot show a change."""
    gaps = np.diff(np.unique(values[-4096:]))
    return float(gaps[gaps > 0].min(initial=np.inf)) if (gaps > 0).any() else 0.0


def rolling_median(values: Array, width: int) -> Array:
    """Of each `width` values in a row: (n,) to (n - width + 1,)."""
    if len(values) < width:
        return np.empty(0)
    windows = sliding_window_view(values, width)
    segments = [np.median(windows[i : i + _CHUNK], axis=1) for i in range(0, len(windows), _CHUNK)]
    return np.concatenate(segments)


def past_median(values: Array, window: int = WINDOW) -> Array:
    """Median of the `window` values before each, of those that there are at the beginning; NaN for the first."""
    out = np.full(len(values), np.nan)
    for i in range(1, min(window, len(values))):
        out[i] = np.median(values[:i])
    if len(values) > window:
        out[window:] = rolling_median(values[:-1], window)
    return out


def local_scatter(values: Array) -> Array:
    """The usual scatter within blocks of 32, of the eight blocks before each value; NaN where there is none.

    A median over blocks, so that neither a descent nor an earlier excursion is taken for noise; near the beginning
    also of the eight that follow, if that is less.
    """
    inside = _block_scatters(values)
    past, around = _nearby(inside, 8, 0), _nearby(inside, 8, 9)
    return np.repeat(np.fmin(past, around), _BLOCK)[: len(values)]


def _block_scatters(values: Array) -> Array:
    """The scatter of each block of 32; NaN for those with fewer than eight finite values."""
    whole = len(values) // _BLOCK
    blocks = values[: whole * _BLOCK].reshape(whole, _BLOCK)
    middles = np.median(blocks, axis=1)
    out = 1.4826 * np.median(np.abs(blocks - middles[:, None]), axis=1)
    ragged = [*(blocks[i] for i in np.flatnonzero(np.isnan(out))), values[whole * _BLOCK :]]
    patched = [scatter(b[np.isfinite(b)]) if np.isfinite(b).sum() >= 8 else np.nan for b in ragged]
    out[np.isnan(out)] = patched[:-1]
    return np.append(out, patched[-1])


def _nearby(values: Array, before: int, after: int) -> Array:
    """Median over the `before` values before each, itself and those after it if `after`; of those that are known."""
    width = before + after
    padded = np.concatenate((np.full(before, np.nan), values, np.full(max(after - 1, 0), np.nan)))
    windows = sliding_window_view(padded, width)[: len(values)]
    out = np.empty(len(values))
    for i in range(0, len(windows), _CHUNK):
        segment = np.sort(windows[i : i + _CHUNK], axis=1)  # NaN last
        known = np.isfinite(segment).sum(axis=1)
        rows = np.arange(len(segment))
        middle = (segment[rows, np.maximum(known - 1, 0) // 2] + segment[rows, known // 2]) / 2
        out[i : i + _CHUNK] = np.where(known > 0, middle, np.nan)
    return out


def spans(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Spans of True: (first, one past the last)."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(np.int8), [0]))))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def level(values: Array) -> float:
    """The size that a change of this curve is measured by: its own where it is positive, its spread where not."""
    middle = abs(float(np.median(values)))
    if float(values.min()) >= 0:
        return middle
    low, high = np.quantile(values, (0.1, 0.9))
    return max(middle, float(high - low))
