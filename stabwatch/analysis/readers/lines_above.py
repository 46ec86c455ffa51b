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
_ALONE = re.compile(r"\s*[-+]?(?:\d+\.\d*(?:e[-+]?\d+)?|\d+(?:e[-+]?\d+)|nan|inf)\s*", re.IGNORECASE)


class NameAbove:
    """The name in the line before, if it waits for its number."""

    def __init__(self) -> None:
        self._name = ""

    def joined(self, text: str) -> str:
        """The line, with the name above it if it is a number alone; the same object otherwise."""
        name, self._name = self._name, ""
        if text.rstrip()[-1:] in (":", "=") and _NAME.fullmatch(text):
            self._name = text.strip()
        return f"{name} {text.strip()}" if name and _ALONE.fullmatch(text) else text
