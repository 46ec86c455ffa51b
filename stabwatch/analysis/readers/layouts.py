"""Fast parsing of lines with numbers in the same columns, as a table of bytes.

Most lines of one length have their digits at the same positions. The bytes of all are compared with those of one,
and the numbers are read column by column. That is exact: a float64 holds every integer of 15 digits and every power
of ten up to the 22nd, so one division or multiplication rounds once (Clinger, "How to Read Floating Point Numbers
Accurately", 1990: the fast path of every strtod).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from stabwatch.analysis.readers.arrow import words_as_float64s

Bools = NDArray[np.bool_]
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]
Places = NDArray[np.intp]

LEAST = 16
"""Fewest lines of a length for a layout."""
LONGEST = 1 << 13
"""Most bytes of a line."""
_MOST_DIGITS, _MOST_POWER = 15, 22
_POWERS = 10.0 ** np.arange(_MOST_POWER + 1)
_TENS = 10.0 ** np.arange(_MOST_DIGITS)[::-1]
_ZERO, _POINT, _MINUS = b"0.-"
_EXPONENT = (ord("e"), ord("E"))


@dataclass(frozen=True)
class Number:
    """A number in a line. columns: of its bytes, without commas. digits, powers: of its digits and its exponent."""

    columns: Places
    digits: Places
    decimals: int
    negative: bool
    powers: Places
    inverse: bool
    """Whether the exponent is negative."""

    def read(self, rows: Bytes) -> Floats:
        """Values (lines,) of lines of bytes (lines, length). Raises ValueError."""
        if len(self.digits) > _MOST_DIGITS:
            return self._words(rows)
        value = _whole(rows, self.digits)
        if len(self.powers):
            exponents = _whole(rows, self.powers).astype(np.int64)
            exponents = (-exponents if self.inverse else exponents) - self.decimals
            if np.abs(exponents).max() > _MOST_POWER:
                return self._words(rows)
            value *= _POWERS[np.maximum(exponents, 0)]
            value /= _POWERS[np.maximum(-exponents, 0)]
        elif self.decimals:
            value /= _POWERS[self.decimals]
        return -value if self.negative else value

    def _words(self, rows: Bytes) -> Floats:
        texts = np.ascontiguousarray(rows[:, self.columns])
        return words_as_float64s(texts, len(self.columns) * np.arange(len(rows) + 1))


def _whole(rows: Bytes, columns: Places) -> Floats:
    return (rows[:, columns] - _ZERO).astype(np.float64) @ _TENS[len(_TENS) - len(columns) :]


@dataclass(frozen=True)
class Layout:
    """Positions of the numbers in a line. line: its bytes. digit: which bytes are digits of numbers."""

    line: Bytes
    digit: Bools
    numbers: tuple[Number, ...]
    ours: bool
    """Whether the line has the requested format."""

    def fits(self, rows: Bytes) -> Bools:
        """Which lines have digits at the same positions as this one, and equal bytes elsewhere: (lines,)."""
        same = rows == self.line
        same |= self.digit & (rows - _ZERO < 10)
        return np.asarray(same.all(axis=1))

    def read(self, rows: Bytes) -> Floats:
        """Numbers of matching lines, (lines, numbers). Raises ValueError."""
        return np.stack([number.read(rows) for number in self.numbers], axis=1)


def layout(line: bytes, written: Places, first: Bools, *, ours: bool) -> Layout:
    """written: positions of all bytes of numbers. first: which of them begin a number."""
    data = np.frombuffer(line, dtype=np.uint8)
    digit = np.zeros(len(data), dtype=np.bool_)
    digit[written] = data[written] - _ZERO < 10
    groups = np.split(written, np.flatnonzero(first)[1:]) if len(written) else []
    return Layout(data, digit, tuple(_number(data, columns, digit[columns]) for columns in groups), ours)


def _number(data: Bytes, columns: Places, digit: Bools) -> Number:
    text = data[columns]
    at = np.flatnonzero(np.isin(text, _EXPONENT))
    end = int(at[0]) if len(at) else len(text)
    points = np.flatnonzero(text[:end] == _POINT)
    decimals = int(digit[points[0] : end].sum()) if len(points) else 0
    return Number(
        columns, columns[:end][digit[:end]], decimals, bool(text[0] == _MINUS),
        columns[end:][digit[end:]], end < len(text) and bool(text[end + 1] == _MINUS),
    )  # fmt: skip


class Lengths:
    """The lines of a block by their length. block: without the last newline."""

    def __init__(self, block: bytes) -> None:
        self._data = np.frombuffer(block + b"\n", dtype=np.uint8)
        ends = np.flatnonzero(self._data == ord("\n"))
        self._starts = np.append(0, ends[:-1] + 1)
        self._lengths = ends - self._starts

    def __len__(self) -> int:
        return len(self._starts)

    def groups(self) -> list[Places]:
        """The lines of each length that is common enough."""
        counts = np.bincount(np.minimum(self._lengths, LONGEST))
        return [np.flatnonzero(self._lengths == n) for n in np.flatnonzero(counts >= LEAST).tolist() if 0 < n < LONGEST]

    def rows(self, lines: Places) -> Bytes:
        """Lines of one length as (lines, length) bytes."""
        return sliding_window_view(self._data, int(self._lengths[lines[0]]))[self._starts[lines]]

    def text(self, lines: Places) -> bytes:
        """The selected lines, joined by newlines."""
        data, starts, lengths = self._data, self._starts[lines].tolist(), self._lengths[lines].tolist()
        return b"\n".join([data[s : s + n].tobytes() for s, n in zip(starts, lengths, strict=True)])
