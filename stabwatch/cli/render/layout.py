"""Parts of every report: titled sections, tables, causes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from stabwatch.cli.render.text import clean

if TYPE_CHECKING:
    from stabwatch.alerts import Cause


def new_table(*headings: str, gap: int = 2) -> Table:
    """Without lines, with faint headings."""
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="faint")
    for heading in headings:
        table.add_column(heading)
    return table


def section(title: str | Text, *body: RenderableType) -> Iterator[RenderableType]:
    """A title, and its body below, indented."""
    yield Text()
    yield Text(title, style="title") if isinstance(title, str) else title
    for part in body:
        yield Padding(part, (0, 0, 0, 2), expand=False)


def cause_section(place: int, found: Cause, since: str) -> Iterator[RenderableType]:
    """A cause with its evidence and remedy. since: where it began, in words."""
    title = f"{place}. {clean(found.title)}"
    parts: list[RenderableType] = [Text(since, style="faint"), bullets("•", found.evidence)]
    if found.remedy:
        parts += [Text("What to do", style="calm"), bullets("→", found.remedy)]
    if found.runbook_url:
        parts.append(Text(f"Runbook: {found.runbook_url}", style="faint"))
    if found.references:
        parts.append(Text("; ".join(map(clean, found.references)), style="faint"))
    yield from section(title, *parts)


def bullets(sign: str, lines: Sequence[str]) -> Table:
    """A list with a marker before each line."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    for line in lines:
        grid.add_row(sign, Text(clean(line)))
    return grid
