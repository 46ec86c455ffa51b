"""Times of the records of a text, from the timestamps that loggers write before lines.

A timestamp is in the same column of all record lines, or of the line above each. It has a date with a year, or counts
as a time of day. Whole blocks are parsed at once, because the digits of a timestamp have fixed positions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_STAMP = re.compile(rb"(?<!\d)(?:\d{4}([-/])\d\d\1\d\d[ T_])?\d\d:\d\d:\d\d(?![\d:])")
_WIDEST = 200
"""Bytes of a line in which a timestamp is searched."""
_ABOVE = 3
"""Most lines between a record and the line above it with the timestamp."""
_SAMPLE, _MOST = 100, 0.9
"""Number of records that decide the position of timestamps, and how many of them must have one."""
_DAY = 86_400.0


def timestamps(blocks: Iterable[tuple[int, bytes]], lines: Ints) -> Floats:
    """Seconds of each record (lines,), since the epoch or since a midnight; NaN if unknown.

    blocks: consecutive lines of the text, with the number of the first. lines: line numbers of the records.
    """
    out = np.full(len(lines), np.nan)
    order = np.argsort(lines, kind="stable")
    ascending = lines[order]
    place: tuple[int, int, bool] | None = None
    tried = 0
    for first, starts, data in _indexed(blocks):
        a, b = np.searchsorted(ascending, (first, first + len(starts)))
        if a == b:
            continue
        mine = ascending[a:b] - first
        if place is None:
            place, tried = _place(data, starts, mine[:_SAMPLE]), tried + len(mine)
            if place is None and tried >= _SAMPLE:
                return out
        if place is None:
            continue
        above, column, dated = place
        at = mine - above
        found = np.full(b - a, np.nan)
        found[at >= 0] = _read(data, starts[at[at >= 0]] + column, dated)
        out[order[a:b]] = found
    if place is not None and not place[2]:
        out[order] = _over_midnight(out[order])
    return out


def _indexed(blocks: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, Ints, NDArray[np.uint8]]]:
    """Of each block: the number of its first line, the starts of its lines, and its bytes."""
    for first, block in blocks:
        data = np.frombuffer(block, dtype=np.uint8)
        yield first, np.append(0, np.flatnonzero(data == ord("\n")) + 1), data


def _place(data: NDArray[np.uint8], starts: Ints, records: Ints) -> tuple[int, int, bool] | None:
    """Lines above the record, column and kind of the timestamps; None unless nearly all records have one."""
    text = data.tobytes()
    for above in range(_ABOVE + 1):
        where: dict[tuple[int, bool], int] = {}
        for line in (records - above).tolist():
            start = int(starts[line]) if line >= 0 else len(text)
            found = _STAMP.search(text[start : start + _WIDEST].split(b"\n", 1)[0])
            if found:
                key = found.start(), found[1] is not None
                where[key] = where.get(key, 0) + 1
        best = max(where, key=lambda key: where[key], default=None)
        if best is not None and where[best] >= _MOST * len(records):
            return above, *best
    return None


def _read(data: NDArray[np.uint8], at: Ints, dated: bool) -> Floats:
    """The timestamps that begin at these bytes; NaN where there is none."""
    width = 19 if dated else 8
    inside = at + width <= len(data)
    cells = data[np.minimum(at, max(len(data) - width, 0))[:, None] + np.arange(min(width, len(data)))]
    if cells.shape[1] < width:
        return np.full(len(at), np.nan)
    digits = cells.astype(np.int64) - ord("0")
    figures = [i for i in range(width) if i not in ((4, 7, 10, 13, 16) if dated else (2, 5))]
    good = inside & ((digits[:, figures] >= 0) & (digits[:, figures] <= 9)).all(axis=1)

    def number(*places: int) -> Ints:
        value = np.zeros(len(at), dtype=np.int64)
        for i in places:
            value = 10 * value + np.where(good, digits[:, i], 0)
        return value

    clock = width - 8
    seconds = 3600 * number(clock, clock + 1) + 60 * number(clock + 3, clock + 4) + number(clock + 6, clock + 7)
    if dated:
        year, month, day = number(0, 1, 2, 3), number(5, 6), number(8, 9)
        good &= (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31) & (year >= 1970)
        months = (12 * (year - 1970) + month - 1).astype("datetime64[M]")
        seconds = seconds + 86_400 * (months.astype("datetime64[D]").astype(np.int64) + day - 1)
    return np.where(good, seconds, np.nan)


def _over_midnight(times: Floats) -> Floats:
    """Times of day in the order of the file; a drop by more than half a day starts the next day."""
    known = np.flatnonzero(np.isfinite(times))
    fell = np.diff(times[known]) < -_DAY / 2
    out = times.copy()
    out[known] += _DAY * np.append(0, np.cumsum(fell))[: len(known)]
    return out
