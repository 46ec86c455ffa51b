"""Lines of free text whose numbers have no names: darknet's losses, and a step beside a value or behind one."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from typing import NamedTuple

from stabwatch.analysis.readers import messages
from stabwatch.analysis.readers.names import number

_DARKNET = re.compile(r"^\s*(\d+): (?:-?[\d.]+|-?nan), (-?[\d.]+|-?nan) avg(?: loss)?,")
_BARE = re.compile(
    r"^\s*(\d+)\s+(?:(train|val|eval|test)\s+)?(-?[\d.]+(?:e[+-]?\d+)?|-?nan|-?inf)\s*$"
    r"|^\s*(\d+)\s*[,;:\t]\s*(-?\d+\.\d+(?:e[+-]?\d+)?|-?nan|-?inf)(?:\s*[,;\t]\s*(?:-?[\d.]+(?:e[+-]?\d+)?|-?nan|-?inf)){0,5}\s*$",
    re.IGNORECASE,
)
"""A step and a value; and a row of a table without names, whose first value may be the loss."""
_TENSOR = re.compile(
    r"^\s*tensor\((-?[\d.]+(?:e[+-]?\d+)?|-?nan|-?inf)(?:, [^()]*(?:<\w+>)?[^()]*)?\)\s*$", re.IGNORECASE
)
_COUNT_AND_RATE = re.compile(
    r"^(?:INFO:[\w.-]+:|\d{4}-[\d: ,.-]{6,22}\s+[\w.-]+\s+INFO\s+)?\[(\d{1,12}), (\d\.\d+(?:e-\d+)?)\]\s*$"
)
"""The step and the learning rate of VITS and what is derived from it, above its losses."""
_TAG = re.compile(
    r"^\s*((?:\w+/)+\w+)[ \t]+\[?(-?\d+\.\d+(?:e[+-]?\d+)?|-?nan|-?inf)\]?[ \t]+(\d{1,12})\s*$", re.IGNORECASE
)
"""A name, a value and the step: `losses/q1_loss 63.587 62000`."""
_CELL = r"(?:-?\d*\.\d+(?:e[+-]?\d+)?|-?\d+|-?nan|-?inf|-{2,})"
_OF_A_TUTORIAL = re.compile(
    r"^\s*(\d+) \d+% \([^()]{0,40}\d+s[^()]{0,40}\) (-?\d+\.\d+(?:e[+-]?\d+)?|-?nan|-?inf)(?:\s|$)"
    r"|^\s*\d+m \d+s \(- \d+m \d+s\) \((\d+) \d+%\) (-?\d+\.\d+(?:e[+-]?\d+)?|-?nan|-?inf)(?:\s|$)",
    re.IGNORECASE,
)
"""PyTorch's tutorials on RNNs: `5000 5% (0m 12s) 2.4177 ...` and `1m 2s (- 5m 1s) (5000 5%) 2.4177`."""
_LIST = re.compile(rf"\s*\[({_CELL}(?:, ?{_CELL}){{3,64}})\]\s*", re.IGNORECASE)
"""A list without names, as the VITS trainers print theirs; a whole number that rises in it is the step."""
_LONGEST_BARE = 64
_ROW = re.compile(rf"\s*[\[(|]?\s*(\d{{1,12}}(?:[\s,;|]+{_CELL}){{2,64}})\s*[\])|]?\s*", re.IGNORECASE)
"""A step, and two or more cells in columns without names; dashes stand for what was not measured."""
_FEWEST_ROWS = 3
_ALIKE = 0.8
"""Share of rows with as many cells."""
_RISE = 0.8
"""Share of pairs of rows in which the count at their start rises."""

Row = tuple[int, list[float | None]]
"""Line, cells."""


class Nameless(NamedTuple):
    """A step, a value and its name; '' if nothing says what the value is."""

    step: int
    name: str
    value: float


def is_bare(text: str) -> bool:
    """Whether a line is a step and a value."""
    if text.lstrip().startswith("tensor("):
        return _TENSOR.match(text) is not None
    if cells_of(text) is not None or _OF_A_TUTORIAL.match(text):
        return True
    if len(text) < 2 * _LONGEST_BARE and _COUNT_AND_RATE.match(text):
        return True
    return len(text) < _LONGEST_BARE and any(form.match(text) for form in (_BARE, _TAG))


def cells_of(text: str) -> list[float | None] | None:
    """The cells of a row without names; None for other lines, and for rows of whole numbers."""
    start = text.lstrip()[:1]
    if not (start.isdigit() or start in ("[", "(", "|")):
        return None
    found = _LIST.fullmatch(text) or _ROW.fullmatch(text)
    if found is None:
        return None
    cells = re.split(r"[\s,;|]+", found[1].strip())
    told = [cell for cell in cells if "." in cell or cell.lower().lstrip("-") in ("nan", "inf")]
    if len(told) < 2:
        return None
    return [None if cell.startswith("--") else number(cell) for cell in cells]


def columns_of(rows: list[Row]) -> list[tuple[int, int, dict[str, float]]]:
    """Line, step and values of rows that are one table, by the place of a column; empty if they are none.

    The step is the first column of whole numbers that rises.
    """
    lengths = Counter(len(cells) for _, cells in rows)
    length, times = lengths.most_common(1)[0] if rows else (0, 0)
    rows = [row for row in rows if len(row[1]) == length]
    if times < max(_FEWEST_ROWS, _ALIKE * lengths.total()):
        return []
    columns = list(zip(*(cells for _, cells in rows), strict=True))
    at = next((i for i, cells in enumerate(columns) if _counts(cells)), None)
    if at is None:
        return []
    return [
        (
            line,
            int(cells[at] or 0),
            {f"column {i + 1}": value for i, value in enumerate(cells) if value is not None and i != at},
        )
        for line, cells in rows
    ]


def _counts(cells: tuple[float | None, ...]) -> bool:
    """Whether a column has whole numbers that rise."""
    whole = [cell for cell in cells if cell is not None and 0 <= cell < 1 << 53 and cell % 1 == 0]
    return len(whole) == len(cells) and sum(a < b for a, b in pairwise(whole)) >= _RISE * (len(whole) - 1)


def lone_tensor(text: str) -> float | None:
    """The value of a line that is one printed tensor, such as `tensor(2.5, device='cuda:0')`; None for other lines."""
    found = _TENSOR.match(text)
    return None if found is None else number(found[1])


def nameless(text: str) -> Nameless | None:
    """Step and value of such a line; None for other lines."""
    rate = _COUNT_AND_RATE.match(text) if text.rstrip().endswith("]") else None
    if rate:
        return Nameless(int(rate[1]), "lr", float(rate[2]))
    taught = _OF_A_TUTORIAL.match(text) if "%" in text else None
    if taught:
        return Nameless(int(taught[1] or taught[3]), "loss", number(taught[2] or taught[4]) or 0.0)
    tag = _TAG.match(text) if "/" in text and len(text) < _LONGEST_BARE else None
    if tag:
        return Nameless(int(tag[3]), tag[1], float(tag[2]))
    found = _DARKNET.match(text) if " avg" in text else None
    bare = _BARE.match(text) if found is None and len(text) < _LONGEST_BARE else None
    value = number(found[2] if found else (bare[3] or bare[5]) if bare else "")
    if value is None:
        return None
    if found:
        return Nameless(int(found[1]), "loss", value)
    assert bare is not None
    kind = (bare[2] or "").lower()
    return Nameless(int(bare[1] or bare[4]), "loss" if kind == "train" else f"{kind}_loss" if kind else "", value)


def is_odd(text: str) -> bool:
    """Whether a line may contain more than keys and numbers. Depends only on the text between its numbers."""
    if text.lstrip().startswith("|") or "epoch:train" in text or " avg" in text or "epoch results" in text:
        return True
    if "epoch started" in text or is_bare(text):
        return True
    return messages.kind_of(text) is not None
