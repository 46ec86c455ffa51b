"""Tables within free text: two columns between bars (OpenAI baselines, stable-baselines3), or a header over rows."""

from __future__ import annotations

import re
from collections.abc import Callable

from stabwatch.analysis.readers.names import EPOCH_KEYS, number, plain, step_rank

_BARS = str.maketrans("│┃║", "|||")
_GAP = re.compile(r"\s{2,}|\t")
_SPLIT_LOSS = re.compile(r"\b(train|training|valid|val|validation|test|eval) (loss)\b", re.IGNORECASE)
_SPLIT = re.compile(r"(?:train|valid|val|test|eval|dev)\w*", re.IGNORECASE)
TWO = 2
"""Fewest splits in the line above the names of their columns."""
_CELL = re.compile(r"\S+(?: \S+)*")
_NEAR = 1
"""Most characters by which a cell begins or ends beside its name."""
_NO_HEADER = re.compile(r"[:=]|(?<![A-Za-z_])\d")


class CellTables:
    """The table that is open. give: takes the line of a row, and its values by name."""

    def __init__(self, give: Callable[[int, dict[str, float]], None]) -> None:
        self._give = give
        self._open: dict[str, float] = {}
        self.header: list[str] = []
        self._above: list[str] = []
        """The cells of the line before, if it may be the first line of a header."""
        self._places: list[tuple[int, int]] = []
        """Where each name of the header begins and ends, if it has wide gaps."""

    def close(self, line: int) -> None:
        """Give the two-column table that is open, if any."""
        if self._open:
            row, self._open = self._open, {}
            self._give(line, row)

    def close_before(self, line: int, text: str) -> None:
        """The same, if the line does not continue the table."""
        if self._open and text[:1] not in " |" and text.strip():
            self.close(line)

    def take(self, line: int, text: str) -> bool:
        """Whether the line is part of a two-column table, or a header, which is then kept."""
        names = cells(text)
        if text.lstrip().startswith("|") and len(names) == 2 and (value := number(names[1])) is not None:
            if names[0] in self._open:
                self.close(line)
            self._open[names[0]] = value
            return True
        if self._open and set(text.strip()) <= set("-+| =") and text.strip():
            self.close(line)
            return True
        if text.lstrip().startswith("|") and len(names) > 2 and self._in_two_lines(names):
            return True
        if "loss" not in text.lower() or _NO_HEADER.search(text):
            return False
        names = (_titles(text) or _listed(text)) if len(names) == 1 else names
        if len(names) < 3:
            return False
        self.header = _told_apart(names)
        found = list(_CELL.finditer(text.expandtabs())) if "|" not in text.translate(_BARS) else []
        self._places = [cell.span() for cell in found] if len(found) == len(names) else []
        return True

    def _in_two_lines(self, names: list[str]) -> bool:
        """Whether a line between bars is the second line of a header, as MATLAB prints it."""
        if all(set(name) <= set("-: ") for name in names):
            return False  # the rule of a Markdown table, between the two
        above, self._above = self._above, [] if any(number(name) is not None for name in names) else names
        if len(above) != len(names) or self._above is not names or all(names):
            return False
        whole = _grouped(above, names) or [" ".join(filter(None, pair)) for pair in zip(above, names, strict=True)]
        counts = any(step_rank(name) is not None or plain(name) in EPOCH_KEYS for name in whole)
        if not counts or not any("loss" in name.lower() or "rmse" in name.lower() for name in whole):
            return False
        self.header, self._places, self._above = whole, [], []
        return True

    def row(self, line: int, text: str) -> bool:
        """Whether the line is a row under the last header, which is then given."""
        placed = self._placed(text) if self._places else None
        if placed is not None:
            self._give(line, placed)
            return True
        found = cells(text)
        found = text.split() if len(found) != len(self.header) else found
        found = found[1:] if self._is_numbered(found) else found
        if len(found) != len(self.header):
            found = self._cut(found)
        numbers = [number(c.removesuffix("%")) for c in found]
        if sum(n is not None for n in numbers) <= len(found) / 2:
            return False
        self._give(line, {n: v for n, v in zip(self.header, numbers, strict=False) if v is not None})
        return True

    def _is_numbered(self, found: list[str]) -> bool:
        """Whether a row begins with its number, above which the header has no name: a printed data frame."""
        if len(found) != len(self.header) + 1 or not found[0].isdigit():
            return False
        counts = step_rank(self.header[0]) is not None or plain(self.header[0]) in EPOCH_KEYS
        return counts == found[1].isdigit() and all(number(cell) is not None for cell in found)

    def _placed(self, text: str) -> dict[str, float] | None:
        """The values of a row with blank cells, each under the name that begins or ends where it does."""
        found = list(_CELL.finditer(text.expandtabs()))
        if not 2 < len(found) < len(self.header):
            return None
        row: dict[str, float] = {}
        for cell in found:
            at = [i for i, place in enumerate(self._places) if min(map(_apart, place, cell.span())) <= _NEAR]
            value = number(cell[0])
            if len(at) != 1 or value is None or self.header[at[0]] in row:
                return None
            row[self.header[at[0]]] = value
        return row

    def _cut(self, found: list[str]) -> list[str]:
        """The cells of a row with fewer cells than the header, or with a remark behind; empty if it is no row."""
        counts = step_rank(self.header[0]) is not None or plain(self.header[0]) in EPOCH_KEYS
        found = found[: len(self.header)]
        if not counts or len(found) < 3 or not found[0].isdigit():
            return []
        told = [number(cell) is not None for cell in found]
        return found if all(told[:3]) and told == sorted(told, reverse=True) else []


def _grouped(above: list[str], names: list[str]) -> list[str]:
    """Names below the splits of the data they belong to: `train`, and some cells on `validate`; empty without such."""
    if sum(map(bool, above)) < TWO or not all(_SPLIT.fullmatch(name) for name in above if name):
        return []
    whole, split = list[str](), ""
    for group, name in zip(above, names, strict=True):
        split = group or split
        counts = name and (step_rank(name) is not None or plain(name) in EPOCH_KEYS)
        whole.append(name if not name or (counts and name not in whole) else f"{split} {name}")
    return whole


def _told_apart(names: list[str]) -> list[str]:
    """The names of a header; one that comes again is of an evaluation, whose columns stand beside those of training."""
    return [f"eval/{name}" if name and name in names[:i] else name for i, name in enumerate(names)]


def _apart(a: int, b: int) -> int:
    return abs(a - b)


def cells(text: str) -> list[str]:
    """Cells between bars (also of boxes), or between wide gaps."""
    text = text.strip().translate(_BARS)
    return [c.strip() for c in text.strip("|").split("|")] if "|" in text else _GAP.split(text)


def _listed(text: str) -> list[str]:
    """The names of a header with commas between them, perhaps between stars: `***train_loss,train_acc***`."""
    names = [part.strip() for part in text.strip().strip("*=#- ").split(",")]
    return names if all(map(str.isidentifier, names)) else []


def _titles(text: str) -> list[str]:
    """The names of a header with one blank between them. It begins with a count; names of losses may have two words."""
    names = _SPLIT_LOSS.sub(r"\1_\2", text).split()
    counts = bool(names) and (step_rank(names[0]) is not None or plain(names[0]) in EPOCH_KEYS)
    return names if counts and all(map(str.isidentifier, names)) else []
