"""Fast parsing of long runs of lines that differ only in their numbers.

A template that occurs many times in a row becomes one regular expression. Matching lines are collected, and their
numbers are converted column by column. The result is that of `lines.py`, which reads line by line and handles all other
cases: other lines, other forms of numbers, steps that do not rise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stabwatch.analysis.readers.arrow import words_as_float64s
from stabwatch.analysis.readers.fixed_format import FixedFormat
from stabwatch.analysis.readers.templates import Template

LEARN = 8
"""Fewest lines of one template in a row for a regular expression."""
LEAST = 4
"""Fewer lines in a row are read one by one."""
PATIENCE = 64
"""Short runs in a row after which a template is given up, because lines of several kinds alternate."""
SHARE = 0.5
"""Smallest share of the lines of a block with the format; below it, they are searched line by line."""
_NUMBER = rb"([-+.\d][-+.\deE]*|[-+]?[nN][aA][nN]|[-+]?[iI][nN][fF])"
"""A quick pattern that matches more than numbers. A match that is not a number fails later and is read line by line."""
_GLUE = frozenset((",", ".", "+", "e", "E"))
"""Characters between two numbers that may belong to one of them."""


Columns = Callable[[int], NDArray[np.float64]]
"""The numbers at one position in all lines. Raises ValueError if one of them is not a number."""


class Parser(Protocol):
    """The line-by-line parser."""

    @property
    def latest(self) -> Template | None:
        """The template of the last line, if lines like it may be read at once."""

    def take(self, line: int, text: str) -> None:
        """One line."""

    def skip(self, raw: bytes) -> None:
        """One line that is not worth parsing."""

    def take_all(self, template: Template, lines: NDArray[np.int64], numbers: Columns) -> bool:
        """Add lines of one template. If they must be read one by one, returns False and adds none."""


class LineRuns:
    """Reads blocks of lines. worth: returns, for a block, a test whether a line may be relevant; None if no line is.
    pieces: splits a line into its texts."""

    def __init__(
        self,
        parser: Parser,
        worth: Callable[[bytes], Callable[[bytes], bool] | None],
        pieces: Callable[[bytes], list[str]],
    ) -> None:
        self._parser = parser
        self._worth, self._pieces = worth, pieces
        self._template: Template | None = None
        self._pattern: re.Pattern[bytes] | None = None
        self._format: FixedFormat | None = None
        self._given_up: set[int] = set()
        self._whole = False
        """Whether every line of the last block matched the template."""
        self._short = 0
        self._last: Template | None = None
        self._times = 0

    def block(self, first: int, block: bytes) -> None:
        """Read consecutive lines; the first has the number `first`."""
        if self._format is not None and self._by_shape(first, block, self._format):
            return
        if self._whole and self._pattern is not None:
            numbers, count = self._pattern.findall(block), block.count(b"\n") + 1
            if len(numbers) == count and len(numbers[0]) > 1:
                self._flush(range(first, first + count), _columns(numbers), first, lambda: block.split(b"\n"))
                return
        worth = self._worth(block)
        if worth is None:
            for raw in block.split(b"\n"):
                self._parser.skip(raw)
        self._whole = worth is not None and self._by_line(first, block, worth)

    def _by_shape(self, first: int, block: bytes, fixed: FixedFormat) -> bool:
        """Add the lines if nearly all have the format, with the others between them. Returns whether it did."""
        found = fixed.read(block)
        if found is None or found[0].sum() < SHARE * len(found[0]):
            return False
        same, numbers = found
        whole = bool(same.all())
        raws = [] if whole else block.split(b"\n")
        worth = None if whole else self._worth(block)
        others = [i for i in np.flatnonzero(~same).tolist() if worth is not None and worth(raws[i])]
        lines, start = np.flatnonzero(same) + first, 0
        for i in [*others, len(same)]:
            stop = int(np.searchsorted(lines, first + i))
            if stop > start:
                columns = _slices(fixed, numbers[start:stop])
                self._flush(lines[start:stop].tolist(), columns, first, lambda: raws or block.split(b"\n"))
            if i < len(same):
                self._one(first + i, raws[i])
            start = stop
        return True

    def _by_line(self, first: int, block: bytes, worth: Callable[[bytes], bool]) -> bool:
        """Add the lines that match the template. Returns whether all did."""
        raws = block.split(b"\n")
        at: list[int] = []
        numbers: list[tuple[bytes, ...]] = []
        whole = True
        for line, raw in enumerate(raws, first):
            if self._pattern is not None and (found := self._pattern.fullmatch(raw)) is not None:
                at.append(line)
                numbers.append(found.groups())
                continue
            whole = False
            if not worth(raw):
                self._parser.skip(raw)
                continue
            if at:
                self._flush(at, _columns(numbers), first, lambda: raws)
                at, numbers = [], []
            self._one(line, raw)
        if at:
            self._flush(at, _columns(numbers), first, lambda: raws)
        return whole

    def _flush(self, at: Sequence[int], numbers: Columns, first: int, raws: Callable[[], list[bytes]]) -> None:
        assert self._template is not None
        many = len(at) >= LEAST
        if many and self._parser.take_all(self._template, np.array(at, dtype=np.int64), numbers):
            self._short = 0
            return
        there = raws()
        for line in at:
            for text in self._pieces(there[line - first]):
                self._parser.take(line, text)
        self._short += 1
        if self._short >= PATIENCE:
            self._given_up.add(id(self._template))
            self._pattern = self._template = self._format = None
            self._short = 0

    def _one(self, line: int, raw: bytes) -> None:
        for text in self._pieces(raw):
            self._parser.take(line, text)
            latest = self._parser.latest
            self._times = self._times + 1 if latest is not None and latest is self._last else 0
            self._last = latest
            new = latest is not None and latest is not self._template and id(latest) not in self._given_up
            if new and self._times >= LEARN:
                self._learn(latest, raw)

    def _learn(self, template: Template | None, raw: bytes) -> None:
        assert template is not None
        pattern, fixed = _pattern(template), FixedFormat(template, raw)
        if pattern is None and not fixed.works:
            self._given_up.add(id(template))
            return
        self._template, self._short = template, 0
        self._pattern = None if pattern is None else re.compile(pattern, re.MULTILINE)
        self._format = fixed if fixed.works else None


def _slices(fixed: FixedFormat, numbers: NDArray[np.float64]) -> Columns:
    return lambda at: fixed.column(numbers, at)


def _columns(numbers: list[tuple[bytes, ...]]) -> Columns:
    return lambda at: floats([words[at] for words in numbers])


def floats(words: Sequence[bytes]) -> NDArray[np.float64]:
    """Words as numbers, (words,), in a quarter of the time of `float`. Raises ValueError."""
    try:
        return words_as_float64s(b"".join(words), np.cumsum([0, *map(len, words)]))
    except pa.ArrowInvalid:
        return np.array([float(word) for word in words])


def _pattern(template: Template) -> bytes | None:
    """A regular expression for such lines; None if it could match other lines, or would be slow."""
    texts = template.texts
    first = texts[0].strip()
    if not first or first[0] in "[(" or not all(t.isascii() for t in texts) or len(texts) > 64:
        return None
    if any(t.strip() in _GLUE for t in texts[1:-1]) or any("\r" in t or "\x1b" in t for t in texts):
        return None
    parts = [re.escape(t.encode()) + (rb"[ \t]*" if t.strip() else rb"[ \t]+") for t in texts[:-1]]
    return b"^" + _NUMBER.join([*parts, re.escape(texts[-1].encode()) + rb"[ \t]*$"])
