"""Robust statistics of a curve. Windows are counted in records, because the logging interval may change."""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[np.float64]

WINDOW = 51
"""Past records with which a record is compared. Excursions of up to 25 records do not move their median."""
SUSTAINED = 5
"""Fewest records in a row of an excursion; shorter ones are single batches. In real logs, bad batches and heavy tails
last one record, rarely two to four; spikes last fourteen to forty."""
_BLOCK = 32
"""Records per estimate of the scatter."""
_CHUNK = 1 << 16
"""Windows processed at once, which bounds the memory."""
_WIDE = 256
"""Width from which a window is kept sorted."""


def scatter(values: Array) -> float:
    """Standard deviation estimated from the median absolute deviation; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def print_unit(values: Array) -> float:
    """The smallest distance between two different values, which is the resolution of the log."""
    gaps = np.diff(np.unique(values[-4096:]))
    return float(gaps[gaps > 0].min(initial=np.inf)) if (gaps > 0).any() else 0.0


def rolling_median(values: Array, width: int) -> Array:
    """Median of each `width` values in a row: (n,) -> (n - width + 1,)."""
    if len(values) < width:
        return np.empty(0)
    if width > _WIDE and np.isfinite(values).all():
        return _medians_in_turn(values, width)
    windows = sliding_window_view(values, width)
    segments = [np.median(windows[i : i + _CHUNK], axis=1) for i in range(0, len(windows), _CHUNK)]
    return np.concatenate(segments)


def _medians_in_turn(values: Array, width: int) -> Array:
    """The same for wide windows: one value enters the sorted window, and one leaves it."""
    numbers = values.tolist()
    window = sorted(numbers[:width])
    low, high = (width - 1) // 2, width // 2
    out = np.empty(len(numbers) - width + 1)
    out[0] = (window[low] + window[high]) / 2
    for i in range(width, len(numbers)):
        del window[bisect_left(window, numbers[i - width])]
        insort(window, numbers[i])
        out[i - width + 1] = (window[low] + window[high]) / 2
    return out


def past_median(values: Array, window: int = WINDOW) -> Array:
    """Median of the `window` values before each value; of fewer at the beginning; NaN for the first."""
    out = np.full(len(values), np.nan)
    for i in range(1, min(window, len(values))):
        out[i] = np.median(values[:i])
    if len(values) > window:
        out[window:] = rolling_median(values[:-1], window)
    return out


def local_scatter(values: Array) -> Array:
    """The usual scatter within blocks of 32, over the eight blocks before each value; NaN without blocks.

    It is a median over blocks, so neither a descent nor an earlier excursion counts as noise. Near the beginning it
    is also taken over the eight following blocks, if that is smaller.
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
    """Median over the `before` values before each; with `after`, also over itself and those after it. Skips NaN."""
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
    """The unit for a change of this curve: its value where positive, otherwise its spread."""
    middle = abs(float(np.median(values)))
    if float(values.min()) >= 0:
        return middle
    low, high = np.quantile(values, (0.1, 0.9))
    return max(middle, float(high - low))
