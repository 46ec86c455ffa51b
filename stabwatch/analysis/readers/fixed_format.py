"""Fast parsing of lines with one format: numbers of a whole block of bytes at a time.

Numbers in a block are found byte by byte, by the rules of `names.NUMBER`. The skeleton of a line is the line with each
number replaced by a mark, and without blanks. Lines with the skeleton of a parsed line have the same numbers in the
same order. Any other line (NaN in letters, more or fewer numbers, other text) has another skeleton.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stabwatch.analysis.readers.arrow import words_as_float64s
from stabwatch.analysis.readers.layouts import LEAST, Layout, Lengths, layout
from stabwatch.analysis.readers.names import number
from stabwatch.analysis.readers.templates import Template, numbers_of

_MARK = 1
_PIECE = 1 << 15
"""Bytes per block. The masks stay in the cache, which is three times as fast as blocks of a megabyte."""
_LONGEST_GLUED = 8
"""Most digits of a word (`l2_norm`, `pg0`) that are skipped; hashes are not skipped."""

_ZEROS = bytes.maketrans(b"123456789", b"0" * 9)
_MOST_LAYOUTS = 256
_FEW = 0.5
_PATIENCE = 8
"""Blocks with more than `_FEW` lines without a common layout, after which no layout is searched."""

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Places = NDArray[np.intp]

_OTHER, _DIGIT, _DOT, _SIGN, _E, _LETTER, _BLANK, _COMMA = range(8)


def _classes() -> bytes:
    out = bytearray([_OTHER] * 128 + [_LETTER] * 128)
    letters = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"
    kinds = {_LETTER: letters, _E: b"eE", _DIGIT: b"0123456789", _SIGN: b"+-", _BLANK: b" \t\r"}
    for kind, members in {**kinds, _DOT: b".", _COMMA: b","}.items():
        for byte in members:
            out[byte] = kind
    return bytes(out)


_CLASSES = _classes()


class FixedFormat:
    """Reads lines like a parsed one. raw: that line in the file. template: its parsed form.

    works: False if its numbers cannot be found this way.
    """

    def __init__(self, template: Template, raw: bytes) -> None:
        printed = numbers_of(raw.decode("utf-8", "replace"))
        before = len(printed) - len(template.texts) + 1
        """Numbers in a rank's prefix, which must be equal in all lines."""
        spelled = [word.strip("+-")[:1].isalpha() for word in printed]
        values = [number(word) for word in printed]
        self._constants = {i - before: v for i, v in enumerate(values) if spelled[i] and v is not None}
        places = np.cumsum(~np.array(spelled, dtype=np.bool_)) - 1
        self._places = places[max(before, 0) :].tolist()
        self._count = len(printed) - sum(spelled)
        found = _marked(raw)
        self._skeleton, self._prefix = b"", np.empty(0)
        self.works = before >= 0 and not any(spelled[: max(before, 0)]) and found is not None
        self.works = self.works and None not in values and not any("#" in word for word in printed)
        self.works = self.works and b"\r" not in raw.rstrip(b"\r") and b"\x1b" not in raw
        if found is None or not self.works:
            return
        self._skeleton = found[0]
        try:
            numbers = _floats(*found[1:])
        except ValueError:
            numbers = np.empty(0)
        self.works = len(numbers) == self._count > 0
        self._prefix = numbers[:before]
        self._layouts: dict[bytes, Layout] = {}
        self._patience = _PATIENCE

    def read(self, block: bytes) -> tuple[Bools, Floats] | None:
        """Which lines of a block have this format, (lines,), and their numbers, (matches, numbers); None if unknown."""
        lines = Lengths(block)
        same, numbers = np.zeros(len(lines), dtype=np.bool_), np.empty((len(lines), self._count))
        left = np.ones(len(lines), dtype=np.bool_)
        if self._patience:
            self._by_layout(lines, left, same, numbers)
            self._patience -= left.mean() > _FEW
        if left.any():
            others = np.flatnonzero(left)
            found = self._by_piece(lines.text(others) if len(others) < len(lines) else block)
            if found is None:
                return None
            same[others] = found[0]
            numbers[others[found[0]]] = found[1]
        if len(self._prefix):
            same &= (numbers[:, : len(self._prefix)] == self._prefix).all(axis=1)
        return same, numbers[same]

    def _by_layout(self, lines: Lengths, left: Bools, same: Bools, numbers: Floats) -> None:
        """Read the lines with numbers in the same columns, and remove them from the remaining ones."""
        for group in lines.groups():
            rows = lines.rows(group)
            while len(group) >= LEAST:
                layout = self._layout_of(rows[0].tobytes())
                if layout is None:
                    break
                fits = layout.fits(rows)
                found = group[fits]
                if layout.ours:
                    try:
                        numbers[found] = layout.read(rows[fits])
                    except ValueError:
                        break
                    same[found] = True
                left[found] = False
                if len(found) < LEAST / 2:
                    break
                group, rows = group[~fits], rows[~fits]

    def _by_piece(self, block: bytes) -> tuple[Bools, Floats] | None:
        parts = []
        for piece in _pieces(block):
            part = self._read(piece)
            if part is None:
                return None
            parts.append(part)
        return np.concatenate([same for same, _ in parts]), np.concatenate([numbers for _, numbers in parts])

    def _read(self, block: bytes) -> tuple[Bools, Floats] | None:
        found = _marked(block)
        if found is None:
            return None
        skeletons, digits, starts = found
        lines, skeleton = skeletons.count(b"\n") + 1, self._skeleton
        if len(skeletons) == lines * (len(skeleton) + 1) - 1 and skeletons + b"\n" == (skeleton + b"\n") * lines:
            same = np.ones(lines, dtype=np.bool_)
        else:
            each = skeletons.split(b"\n")
            same = np.fromiter([line == skeleton for line in each], dtype=np.bool_, count=lines)
            counts = np.fromiter([line.count(_MARK) for line in each], dtype=np.int64, count=lines)
            digits, starts = _picked(digits, starts, np.repeat(same, counts))
        try:
            return same, _floats(digits, starts).reshape(-1, self._count)
        except ValueError:
            return None

    def _layout_of(self, line: bytes) -> Layout | None:
        """The skeleton of lines like this one; None if ambiguous, as with `1.2.3`, which is not a number."""
        key = line.translate(_ZEROS)
        known = self._layouts.get(key)
        if known is None or not known.fits(np.frombuffer(line, dtype=np.uint8)[None])[0]:
            found = _places(line)
            if found is None:
                return None
            if len(self._layouts) >= _MOST_LAYOUTS:
                self._layouts.clear()
            ours = found.skeleton() == self._skeleton
            if ours:
                try:
                    _floats(*found.words())
                except ValueError:
                    return None
            known = layout(line, *found.written(), ours=ours)
            self._layouts[key] = known
        return known

    def column(self, numbers: Floats, at: int) -> Floats:
        """Number `at` of the template in the rows that `read` returned."""
        if at in self._constants:
            return np.full(len(numbers), self._constants[at])
        return np.ascontiguousarray(numbers[:, self._places[at]])


def _pieces(block: bytes) -> Iterator[bytes]:
    """Whole lines, about 32 KiB at a time, without the last newline."""
    start = 0
    while len(block) - start > _PIECE and (cut := block.find(b"\n", start + _PIECE)) >= 0:
        yield block[start:cut]
        start = cut + 1
    yield block[start:]


def _picked(digits: NDArray[np.uint8], starts: Places, keep: Bools) -> tuple[NDArray[np.uint8], Places]:
    """The selected numbers."""
    lengths = np.diff(np.append(starts, len(digits)))
    return digits[np.repeat(keep, lengths)], np.cumsum(np.append(0, lengths[keep]))[:-1]


def _floats(digits: NDArray[np.uint8], starts: Places) -> Floats:
    """Numbers in one buffer, one after the other. Raises ValueError."""
    return words_as_float64s(digits, np.append(starts, len(digits)))


@dataclass(frozen=True)
class _Places:
    """Positions of the numbers in a block. data: its bytes between two newlines. The masks: the class of each byte."""

    data: NDArray[np.uint8]
    number: Bools
    start: Bools
    blank: Bools
    comma: Bools | None

    def skeleton(self) -> bytes:
        kept = np.flatnonzero(self.start | ~(self.number | self.blank))
        skeleton = self.data.take(kept)
        np.putmask(skeleton, self.start.take(kept), _MARK)
        return skeleton[1:-1].tobytes()

    def written(self) -> tuple[Places, Bools]:
        """Positions of the bytes of numbers, without thousands separators; and which of them begin a number."""
        written = np.flatnonzero(self.number if self.comma is None else self.number & ~self.comma)
        return written - 1, self.start.take(written)

    def words(self) -> tuple[NDArray[np.uint8], Places]:
        """All digits of numbers, and the start of each number in them."""
        written, first = self.written()
        return self.data[1:].take(written), np.flatnonzero(first)


def _marked(block: bytes) -> tuple[bytes, NDArray[np.uint8], Places] | None:
    """Skeletons, one per line; all digits of numbers; the start of each number in them. None if ambiguous."""
    found = _places(block)
    return None if found is None else (found.skeleton(), *found.words())


def _places(block: bytes) -> _Places | None:
    """Masks of the bytes of a block; None if ambiguous."""
    if _MARK in block:
        return None
    data = np.frombuffer(b"\n" + block + b"\n", dtype=np.uint8)
    kind = np.frombuffer(data.tobytes().translate(_CLASSES), dtype=np.uint8)
    digit, dot, signs, powers = kind == _DIGIT, kind == _DOT, kind == _SIGN, kind == _E
    letter = powers | (kind == _LETTER)
    point = dot & (_before(digit) | _after(digit))
    ahead = _after(digit | point)
    sign = signs & ahead & ~_before(digit | letter | dot)
    power = powers & _before(digit | point)
    raised = signs & _before(power) & _after(digit)
    power &= _after(digit | raised)
    number = digit | point | sign | power | (raised & _before(power))
    comma = (kind == _COMMA) & _before(digit) & _after(digit)
    thousands = bool(comma.any())
    if thousands:
        if not _thousands(digit, np.flatnonzero(comma)):
            return None
        number |= comma
    glued = number & _before(letter & ~number) & ~sign
    if glued.any():
        for _ in range(_LONGEST_GLUED):
            more = number & _before(glued) & ~glued
            if not more.any():
                break
            glued |= more
        else:
            return None
        number &= ~glued
    return _Places(data, number, number & ~_before(number), kind == _BLANK, comma if thousands else None)


def _before(mask: Bools) -> Bools:
    """The mask shifted by one: for each byte, its value at the byte before."""
    out = np.empty_like(mask)
    out[0] = False
    out[1:] = mask[:-1]
    return out


def _after(mask: Bools) -> Bools:
    out = np.empty_like(mask)
    out[-1] = False
    out[:-1] = mask[1:]
    return out


def _thousands(digit: Bools, commas: NDArray[np.intp]) -> bool:
    """Whether exactly three digits follow each comma."""
    following = digit[np.minimum(commas[:, None] + np.arange(1, 5), len(digit) - 1)]
    return bool((following[:, :3].all(axis=1) & ~following[:, 3]).all())
