"""Lines that say what the values below them are: a heading, and a name whose number stands alone in the next line."""

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


class NameAbove:
    """The name in the line before, if it waits for its number."""

    def __init__(self) -> None:
        self._name, self._whole = "", True

    def joined(self, text: str) -> str:
        """The line, with the name above it if it is a number alone; the same object otherwise."""
        name, self._name = self._name, ""
        whole, self._whole = self._whole, True
        if text.rstrip()[-1:] in (":", "="):
            self._whole, ends = _NAME.fullmatch(text) is not None, _ENDS.search(text)
            self._name = text.strip() if self._whole else ends[1] if ends else ""
        waits = name and (_ALONE if whole else _GOES_ON).match(text)
        return f"{name} {text.strip()}" if waits else text
