"""Fast parsing of long runs of lines that differ only in their numbers.

A template that occurs many times in a row becomes one regular expression. Matching lines are collected, and their
numbers are converted column by column. The result is that of `lines.py`, which reads line by line and handles all other
cases: other lines, other forms of numbers, steps that do not rise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property
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
MISSES = 3
"""Lines in a row that must be read by themselves, after which all lines of a run are."""
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

    def take_all(self, template: Template, lines: NDArray[np.int64], numbers: Columns) -> int:
        """Add lines of one template. Returns how many; the one after them must be read by itself."""


Worth = Callable[[bytes], bool]


class _Texts:
    """The lines of a block, or their pieces between carriage returns.

    block: all of them, with newlines between. lines: the number of the line of each. judge: gives a test whether a
    line of the block may be relevant, None if none is. whole: the lines that the pieces are of, if they are pieces.
    """

    def __init__(
        self, block: bytes, lines: NDArray[np.int64], judge: Callable[[], Worth | None], whole: bytes | None = None
    ) -> None:
        self.block, self.lines = block, lines
        self._judge, self._whole = judge, whole

    @cached_property
    def raws(self) -> list[bytes]:
        """Each by itself."""
        return self.block.split(b"\n")

    @cached_property
    def worth(self) -> Worth | None:
        """The test of a line."""
        return self._judge()

    @cached_property
    def _worthy(self) -> NDArray[np.bool_] | None:
        """Which pieces are of lines that may be relevant."""
        if self._whole is None or self.worth is None:
            return None
        return np.array([self.worth(raw) for raw in self._whole.split(b"\n")])[self.lines - self.lines[0]]

    def relevant(self, some: list[int], judge: Callable[[bytes], Worth | None]) -> list[int]:
        """Those of some that may be relevant, without a look at the others: these are nearly all of a block.

        judge: gives the test for the lines of a block.
        """
        if {"worth", "_worthy"} & vars(self).keys():  # the others were looked at already
            return [i for i in some if self.is_worth(i)]
        some = [i for i in some if self.raws[i]] if self._whole is not None else some
        texts = self.raws if self._whole is None else self._whole.split(b"\n")
        places = some if self._whole is None else (self.lines[some] - self.lines[0]).tolist()
        worth = judge(b"\n".join([texts[i] for i in dict.fromkeys(places)])) if some else None
        if worth is None:
            return [i for i in some if self.is_worth(i)]
        return [i for i, place in zip(some, places, strict=True) if worth(texts[place])]

    def after(self, i: int) -> _Texts:
        """Those behind one of them."""
        later = _Texts(b"\n".join(self.raws[i + 1 :]), self.lines[i + 1 :], lambda: self.worth)
        later._worthy = None if self._worthy is None else self._worthy[i + 1 :]
        return later

    def is_worth(self, i: int) -> bool:
        """Whether one may be relevant."""
        if self._worthy is not None:
            return bool(self._worthy[i]) and bool(self.raws[i])
        return self.worth is not None and self.worth(self.raws[i])


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
        redrawn = block.count(b"\r") > block.count(b"\r\n")
        if not redrawn and self._format is None and self._read_whole(first, block):
            return
        texts = self._texts(first, block, redrawn)
        if self._format is not None and self._by_shape(texts, self._format):
            self._whole = False
        elif texts.worth is None:
            for raw in block.split(b"\n"):
                self._parser.skip(raw)
            self._whole = False
        else:
            self._whole = self._by_line(texts)

    def _texts(self, first: int, block: bytes, redrawn: bool) -> _Texts:
        """The lines of a block; the pieces of its lines, if a carriage return begins a new one."""
        if not redrawn:
            count = block.count(b"\n") + 1
            return _Texts(block, np.arange(first, first + count), lambda: self._worth(block))
        plain = block.replace(b"\r\n", b"\n")
        lines = _lines_of_pieces(first, plain)
        return _Texts(plain.replace(b"\r", b"\n"), lines, lambda: self._worth(block), plain)

    def _read_whole(self, first: int, block: bytes) -> bool:
        """Add the lines of a block that all match the template, as those of the block before did."""
        if not self._whole or self._pattern is None:
            return False
        numbers, count = self._pattern.findall(block), block.count(b"\n") + 1
        if len(numbers) != count or len(numbers[0]) < 2:
            return False
        at = np.arange(first, first + count)
        self._flush(self._template, _Texts(block, at, lambda: None), np.arange(count), _columns(numbers))
        return True

    def _by_shape(self, texts: _Texts, fixed: FixedFormat) -> bool:
        """Add the texts if nearly all have the format, with the others between them. Returns whether it did."""
        found = fixed.read(texts.block)
        if found is None or found[0].sum() < SHARE * len(found[0]):
            return False
        same, numbers = found
        template = self._template  # a line between may be the first of another
        others = texts.relevant(np.flatnonzero(~same).tolist(), self._worth)
        places, start = np.flatnonzero(same), 0
        for i in [*others, len(same)]:
            stop = int(np.searchsorted(places, i))
            if stop > start:
                self._flush(template, texts, places[start:stop], _slices(fixed, numbers[start:stop]))
            if i < len(same):
                self._one(int(texts.lines[i]), texts.raws[i])
            start = stop
        return True

    def _by_line(self, texts: _Texts) -> bool:
        """Add the texts that match the template. Returns whether all did."""
        at: list[int] = []
        numbers: list[tuple[bytes, ...]] = []
        whole = True
        for i, raw in enumerate(texts.raws):
            if self._pattern is not None and (found := self._pattern.fullmatch(raw)) is not None:
                at.append(i)
                numbers.append(found.groups())
                continue
            whole = False
            if not texts.is_worth(i):
                self._parser.skip(raw)
                continue
            if at:
                self._flush(self._template, texts, np.array(at), _columns(numbers))
                at, numbers = [], []
            before = self._format
            self._one(int(texts.lines[i]), raw)
            if self._format is not None and self._format is not before and self._by_shape(texts.after(i), self._format):
                return False
        if at:
            self._flush(self._template, texts, np.array(at), _columns(numbers))
        return whole

    def _flush(self, template: Template | None, texts: _Texts, at: NDArray[np.intp], numbers: Columns) -> None:
        """Add texts of the template, most of them at once."""
        start = taken = misses = 0
        while len(at) - start >= LEAST and template is not None and misses < MISSES:
            lines = texts.lines[at[start:]]
            done = self._parser.take_all(template, lines, _from(numbers, start))
            taken += done
            start += done
            if done < len(lines):  # the next one is read by itself
                self._take(texts, int(at[start]))
                start += 1
                misses = misses + 1 if done < LEAST else 0
        for i in at[start:].tolist():
            self._take(texts, i)
        self._short = 0 if taken else self._short + 1
        if self._short >= PATIENCE and self._template is template is not None:
            self._given_up.add(id(template))
            self._pattern = self._template = self._format = None
            self._short = 0

    def _take(self, texts: _Texts, i: int) -> None:
        for text in self._pieces(texts.raws[i]):
            self._parser.take(int(texts.lines[i]), text)

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


def _lines_of_pieces(first: int, block: bytes) -> NDArray[np.int64]:
    """The number of the line of each piece of a block, between newlines and carriage returns."""
    data = np.frombuffer(block, dtype=np.uint8)
    ends = data[(data == ord("\n")) | (data == ord("\r"))]
    return first + np.append(0, np.cumsum(ends == ord("\n")))


def _from(numbers: Columns, start: int) -> Columns:
    """The same columns without their first numbers."""
    return (lambda at: numbers(at)[start:]) if start else numbers


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
