"""Lines that go on below: a heading, a name whose number is in the next line, counts, an open dictionary."""

from __future__ import annotations

import re

HEADING = re.compile(
    r"\W{0,12}(?:(train(?:ing)?)|val(?:id(?:ation)?)?|eval(?:uation)?|test(?:ing)?|dev)"
    r"(?: (?:results?|metrics?|set|phase|scores?|summary|performance))?\W{0,80}",
    re.IGNORECASE,
)
"""A line above values without names of their own."""
_NAME = re.compile(r"\s*(?:\w+ ){0,4}(?:loss|cost|error)(?: is| was)?\s*[:=]\s*", re.IGNORECASE)
_ENDS = re.compile(r"[-,|] ((?:\w+ )?\w*loss ?[:=])\s*$", re.IGNORECASE)
_ALONE = re.compile(r"\s*[-+]?(?:\d+\.\d*(?:e[-+]?\d+)?|\d+(?:e[-+]?\d+)|nan|inf)\s*$", re.IGNORECASE)
_GOES_ON = re.compile(r"\s*[-+]?(?:\d+\.\d*(?:e[-+]?\d+)?|nan|inf) ?[-,|] [A-Za-z]", re.IGNORECASE)
"""The number of a name at the end of the line before, and what follows it: a line that was broken between the two."""
_COUNTS = re.compile(r"iter(?:ation)? ?\[\d+/\d+\](?:, ?epoch ?\[\d+/\d+\])?\s*", re.IGNORECASE)
"""A line of counts: `Iter[1/20], Epoch [1/1]`."""
_TERMS = re.compile(r"\s*(?:L[a-z]\w{0,10}: [-+]?(?:\d+\.\d*(?:e[-+]?\d+)?|nan|inf)(?:, ?|\s*$)){2,}")
"""The line below it, of terms of a loss without the word: `Lrec: 0.209, Ladv: 0.997`."""
_OPENS = re.compile(r"[^{}]{0,60}\{ ?(['\"])[^'\"{}]{1,60}\1 ?:[^{}]*,\s*")
_PAIR = re.compile(r"\s*(['\"])[^'\"{}]{1,60}\1 ?:[^{}]*(?:,|\}\W{0,4})\s*")
"""A dictionary with one pair in a line: the line that opens it, and those that go on or end it."""
MOST = 64
"""Most lines of a dictionary."""
LONGEST = 80
"""Longest line of counts."""


class LinesAbove:
    """The lines that wait for those below: a name for its number, a dictionary with one pair in a line for its end."""

    def __init__(self) -> None:
        self._name, self._whole = "", True
        self._line, self.parts = -1, list[str]()
        self._counts: tuple[int, str] | None = None

    def take(self, line: int, text: str) -> list[tuple[int, str]]:
        """The lines that are complete with this one, with their numbers; often the same object."""
        counts, self._counts = self._counts, None
        if counts is not None:
            if _TERMS.fullmatch(text):
                return [(counts[0], f"{counts[1].strip()}, {text.strip()}")]
            return [counts, *self.take(line, text)]
        if not self.parts and len(text) < LONGEST and _COUNTS.fullmatch(text):
            self._counts = line, text
            return []
        if not self.parts:
            if "{" not in text or not _OPENS.fullmatch(text):
                return [(line, self._joined(text))]
            self._line, self.parts = line, [text.rstrip()]
            return []
        ends = "}" in text
        if len(self.parts) < MOST and _PAIR.fullmatch(text):
            self.parts.append(text.strip())
            text = ""
            if not ends:
                return []
        whole, self.parts = (self._line, " ".join(self.parts)), []
        return [whole, *self.take(line, text)] if text else [whole]

    def _joined(self, text: str) -> str:
        """The line, with the name above it if it is a number alone; the same object otherwise."""
        name, self._name = self._name, ""
        whole, self._whole = self._whole, True
        if text.rstrip()[-1:] in (":", "="):
            self._whole, ends = _NAME.fullmatch(text) is not None, _ENDS.search(text)
            self._name = text.strip() if self._whole else ends[1] if ends else ""
        waits = name and (_ALONE if whole else _GOES_ON).match(text)
        return f"{name} {text.strip()}" if waits else text
