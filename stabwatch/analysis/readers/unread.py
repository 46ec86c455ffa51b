"""Counts the lines with numbers that no rule of a reader understood, and keeps one to show."""

from __future__ import annotations

import re
from collections import Counter

_NUMBER = re.compile(
    rb"(?<![\w./+-])(?<!\d[:,])[-+]?(?:\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|nan|inf)(?![\w:/-]|\.\w|,\d)", re.IGNORECASE
)
"""A number that stands alone: no part of a name, a date, a time or a version."""
_DIGITS = re.compile(r"\d+")
_MOST_TESTED = 200_000
"""Lines that are tested for numbers; further ones are not counted."""
_MOST_KINDS, _LONGEST, _SHOWN = 512, 400, 120
FEWEST, SHARE = 3, 0.1
"""Fewest such lines, and their smallest share, that are worth a note."""


class Unread:
    """Lines of one file. lines: with numbers, counted. missed: those that were not understood."""

    def __init__(self) -> None:
        self.lines = self.missed = 0
        self._tested = 0
        self._kinds: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def understood(self, count: int = 1) -> None:
        """Some lines were understood."""
        self.lines += count

    def miss(self, raw: bytes) -> None:
        """A line was not understood; it counts if it has a number."""
        if self._tested >= _MOST_TESTED:
            return
        self._tested += 1
        if _NUMBER.search(raw[:_LONGEST]) is None:
            return
        self.lines += 1
        self.missed += 1
        text = raw[:_LONGEST].decode("utf-8", "replace").strip()
        kind = _DIGITS.sub("0", text)
        if kind in self._examples or len(self._examples) < _MOST_KINDS:
            self._kinds[kind] += 1
            self._examples.setdefault(kind, text)

    @property
    def example(self) -> str:
        """The first line of the most frequent kind; '' without any."""
        kind = max(self._kinds, key=lambda kind: self._kinds[kind], default="")
        text = self._examples.get(kind, "")
        return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."

    def note(self) -> str:
        """The sentence for the notes of a log, whatever the share."""
        what = "line with numbers was" if self.lines == 1 else "lines with numbers were"
        return f"{self.missed:,} of {self.lines:,} {what} not understood; like this: {self.example}"

    def notes(self, always: bool = False) -> list[str]:
        """The same, if there are enough such lines. always: one is enough."""
        many = self.missed >= FEWEST and self.missed >= SHARE * self.lines
        return [self.note()] if many or (always and self.missed) else []
