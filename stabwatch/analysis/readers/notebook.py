"""The output of a notebook's cells as lines: text, and the HTML tables of trainers."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from typing import Any

_TABLE_ROW = re.compile(r"<tr[^>]*>(.*?)</tr>", re.DOTALL | re.IGNORECASE)
_TABLE_CELL = re.compile(r"<t[hd][^>]*>(.*?)</t[hd]>", re.DOTALL | re.IGNORECASE)
_MARKUP = re.compile(r"<[^>]+>")


def notebook_lines(notebook: Mapping[str, Any]) -> Iterator[str]:
    """Lines of all outputs in the order of the cells; rows of tables have bars between their cells."""
    cells = notebook.get("cells")
    for cell in cells if isinstance(cells, list) else ():
        outputs = cell.get("outputs") if isinstance(cell, dict) else None
        for output in outputs if isinstance(outputs, list) else ():
            if isinstance(output, dict):
                yield from _lines_of(output)


def _lines_of(output: Mapping[str, Any]) -> Iterator[str]:
    data = output.get("data")
    table = _joined(data.get("text/html")) if isinstance(data, dict) else ""
    rows = _TABLE_ROW.findall(table)
    for row in rows:
        cells = [html.unescape(_MARKUP.sub("", cell)).strip() for cell in _TABLE_CELL.findall(row)]
        if cells:
            yield f"| {' | '.join(cells)} |"
    if not rows:
        text = _joined(output.get("text")) or (_joined(data.get("text/plain")) if isinstance(data, dict) else "")
        for line in text.split("\n"):
            yield from (piece for piece in line.split("\r") if piece)


def _joined(value: object) -> str:
    """A text, which may be stored as a list of lines."""
    if isinstance(value, list):
        return "".join(part for part in value if isinstance(part, str))
    return value if isinstance(value, str) else ""
