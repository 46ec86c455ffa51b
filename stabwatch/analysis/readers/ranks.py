"""The rank that wrote a line, in a log of several processes."""

from __future__ import annotations

import re

_AT_THE_START = re.compile(r"\s*(?:\[(?:default|rank)\s*(\d+)\]:?|(\d{1,5}):)\s")
_IN_BRACKETS = re.compile(r"\s*\[(?:default|rank)\s*(\d+)\]:?\s")
_OF_ALL = re.compile(r"\.py:\d+\] \((\d+)/\d+\) |\((\d+)/\d+\) Epoch")


def split_rank(text: str, counts: bool) -> tuple[int | None, str]:
    """The rank, None if the line has none, and the rest. counts: a number at the start of a line is its step."""
    marked = text[:1] in " [0123456789" and " avg" not in text
    found = (_IN_BRACKETS if counts else _AT_THE_START).match(text) if marked else None
    if found:
        text = text[found.end() :]
    elif ") " in text:
        found = _OF_ALL.search(text)
    return (None if found is None else int(found[1] or found[found.lastindex or 1])), text
