"""Lines that a terminal or an editor broke at a fixed width."""

from __future__ import annotations

import re
from collections import Counter

from stabwatch.analysis.readers.names import EPOCH_KEYS, plain, role_of, step_rank

_LINES, _FEWEST = 400, 2
"""Lines that are inspected; fewest records whose first line is full."""
_NARROW = 40
_USUAL = (72, 78, 79, 80, 100, 110, 120, 128, 132, 140, 150, 160, 180, 200, 236, 238, 240)
"""Widths of terminals and of editors."""
_OPENING = 12
_DIGITS = re.compile(r"\d")
_IN_NUMBER = re.compile(
    r"(?:\d|\d\.|\d[eE][-+]?)\n(?:\d|\.\d)|\d[eE]\n[-+]\d|[:=]\n ?[-\d]|\d\n, ?|[ ,]\.\n\d|[\w)'\"]\n[:=] "
)
"""A break through a number, or between a name and its number."""
_IN_WORD = re.compile(r"(\w*[^\W\d])\n([^\W\d]\w*)")
"""A break between two letters. A capital behind a small letter begins a word, as in `Epoch` below a progress bar."""
_IN_NAME = re.compile(r"(\w*[^\W\d])\n ?([^\W\d]\w*) ?[:=]")
"""A break between two words of a name: `learning` above `rate: 0.1`."""
_BEGINS = re.compile(r"\W{0,8}(?:epoch|step|iter(?:ation)?)\b\W{0,3}\d", re.IGNORECASE)
_BAR = "|│┃║-=─━*#+╯╮╭╰"


def width_of(head: str) -> int | None:
    """The width at which long lines of a text were broken; None if they were not. head: its beginning.

    The lines of a record begin in the same way, and its continuations do not. A break goes through a word or a number.
    """
    lines = head.split("\n")[:-1][:_LINES]
    width = max(map(len, lines), default=0)
    full = [i for i, line in enumerate(lines[:-1]) if len(line) == width]
    if width < _NARROW or len(full) < _FEWEST or _are_rows(lines):
        return None
    continuations = {i + 1 for i in full}
    openings = Counter(_opening(lines[i]) for i in full if i not in continuations)
    if not openings or openings.most_common(1)[0][1] < _FEWEST:
        return None
    if any(_opening(lines[i]) in openings for i in continuations):
        return None
    breaks = [(lines[i], lines[i + 1]) for i in full]
    if sum(_BEGINS.match(b) is not None for _, b in breaks) > len(breaks) / 2:
        return None  # records of one length, with a heading above each
    if sum(set(a[-2:]) <= set(_BAR) for a, _ in breaks) > len(breaks) / 2:
        return None  # the frame of a table
    in_number = any(_IN_NUMBER.search(f"{a[-2:]}\n{b[:3]}") for a, b in breaks)
    words = [found for a, b in breaks if (found := _IN_WORD.search(f"{a}\n{b}"))]
    words = [word for word in words if not _is_known(word[2]) and not (word[2][0].isupper() > word[1][-1].isupper())]
    known = any(_is_known(word[1] + word[2]) for word in words)
    names = [found for a, b in breaks if (found := _IN_NAME.search(f"{a}\n{b}"))]
    known = known or any(role_of(f"{name[1]} {name[2]}") != "other" and not _is_known(name[2]) for name in names)
    again = any(i in continuations for i in full)
    return width if in_number or known or (words and (again or width in _USUAL)) else None


def _are_rows(lines: list[str]) -> bool:
    """Whether each line has as many cells, as a table has whose widest numbers are of one width by chance."""
    counts = ({line.count(mark) for line in lines if line} for mark in ",;\t")
    return any(len(count) == 1 and 0 not in count for count in counts)


def _is_known(word: str) -> bool:
    return role_of(word) != "other" or step_rank(word) is not None or plain(word) in EPOCH_KEYS


def _opening(line: str) -> str:
    return _DIGITS.sub("0", line[:_OPENING])


def joined(lines: list[bytes], width: int) -> list[bytes]:
    """The same lines; a continuation is moved to the line that it continues, and leaves an empty one."""
    out: list[bytes] = []
    start = 0
    while start < len(lines):
        stop = start + 1
        while stop < len(lines) and len(lines[stop - 1].decode("utf-8", "replace")) == width:
            stop += 1
        out += [b"".join(lines[start:stop]), *[b""] * (stop - start - 1)]
        start = stop
    return out


def last_record(lines: list[bytes], width: int) -> int:
    """Index of the first line of the last record, which may go on in lines that follow."""
    start = len(lines) - 1
    while start > 0 and len(lines[start - 1].decode("utf-8", "replace")) == width:
        start -= 1
    return start
