"""Small plots in text: a one-line sparkline and a braille chart. On an ASCII terminal both use only ASCII."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.text import Text

from stabwatch.cli.render.text import number

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = "_.-=+*%#"

Array = NDArray[np.float64]


def resample(values: Array, width: int) -> Array:
    """(n,) to at most (width,): the largest of each bin, so that a spike of one step is seen; NaN where the bin
    holds anything that is not finite."""
    values = np.where(np.isfinite(values), values, np.nan)
    if len(values) <= width:
        return values
    edges = np.linspace(0, len(values), width + 1).astype(int)
    return np.array([values[a:b].max() for a, b in pairwise(edges)])


def sparkline(values: Sequence[float] | Array, width: int, glyphs: str = BLOCKS, least: float = 0.0) -> str:
    """A series in `width` characters, '!' where it was NaN or infinite.

    least: smallest extent that fills the height, relative to the largest value, so that noise stays flat.
    """
    data = resample(np.asarray(values, dtype=np.float64), width)
    finite = data[np.isfinite(data)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    extent = max(high - low, least * max(abs(high), abs(low)))
    scale = (len(glyphs) - 1) / extent if extent > 0 else 0.0
    marks = (glyphs[round((value - low) * scale)] if math.isfinite(value) else "!" for value in data.tolist())
    return "".join(marks).rjust(width)


@dataclass(frozen=True)
class Line:
    """One series of a chart. steps: (n,) ints; values: (n,) floats, of which only the finite ones are drawn."""

    steps: NDArray[np.int64]
    values: Array
    style: str = "line"


@dataclass(frozen=True)
class Chart:
    """A chart of lines over steps, as wide as the console, with an optional vertical mark.

    events: (step, style) of further marks, numbered from 1 below the axis.
    log: logarithmic scale, for values that grow over decades; ignored if a value is not positive. unit: of the axis.
    """

    lines: Sequence[Line]
    height: int = 6
    mark: int | None = None
    mark_label: str = "onset"
    log: bool = False
    events: Sequence[tuple[int, str]] = ()
    unit: str = "step"

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(30, options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        points = [(line, np.isfinite(line.values)) for line in self.lines]
        if not any(seen.any() for _, seen in points):
            yield Text("no finite value", style="faint")
            return
        values = np.concatenate([line.values[seen] for line, seen in points])
        steps = np.concatenate([line.steps[seen] for line, seen in points])
        log = self.log and bool((values > 0).all())
        low, high = float(values.min()), float(values.max())
        first, last = int(steps.min()), int(steps.max())
        labels = [number(high), number(low)]
        margin = max(map(len, labels)) + 1
        canvas = _Canvas(max(10, options.max_width - margin - 1), self.height)
        for line, seen in points:
            y = _unit(line.values[seen], low, high, log)
            canvas.draw(_unit(line.steps[seen].astype(np.float64), first, last), y, line.style)
        marked = None if self.mark is None else canvas.column((self.mark - first) / max(last - first, 1))
        numbered = [(canvas.column((step - first) / max(last - first, 1)), style) for step, style in self.events]
        marks = dict(reversed(numbered)) | ({} if marked is None else {marked: "onset"})
        for row, cells in enumerate(canvas.rows(marks, options.ascii_only)):
            label = labels[0] if row == 0 else labels[1] if row == self.height - 1 else ""
            yield Segment(f"{label:>{margin - 1}} ", console.get_style("faint"))
            yield Segment("|" if options.ascii_only else "│", console.get_style("faint"))
            for glyph, style in cells:
                yield Segment(glyph, console.get_style(style))
            yield Segment.line()
        yield Text(" " * (margin + 1) + self._axis(canvas.width, first, last, marked), style="faint", no_wrap=True)
        if numbered:
            yield Text(" " * (margin + 1)).append_text(_numbers(numbered, canvas.width))

    def _axis(self, width: int, first: int, last: int, marked: int | None) -> str:
        left, right = f"{self.unit} {first}", str(last)
        text = list(f"{left}{' ' * max(1, width - len(left) - len(right))}{right}"[:width])
        if marked is not None:
            name = f"{self.mark_label} {self.mark}"
            label, start = f"^ {name}", marked
            if start + len(label) > width - len(right) - 1:  # no room to its right: write to its left
                label, start = f"{name} ^", marked - len(name) - 1
            if start <= len(left):  # no room there either: it is close to the beginning
                label, start = name, len(left) + 2
            if start + len(label) < width - len(right):
                text[start : start + len(label)] = label
        return "".join(text)


def _numbers(numbered: Sequence[tuple[int, str]], width: int) -> Text:
    """The numbers of the events below their columns; those without room are left out."""
    text = Text(no_wrap=True)
    for place, (column, style) in enumerate(numbered, 1):
        label, free = str(place), len(text) + (len(text) > 0)
        if free <= column + 1 and column + len(label) <= width:
            text.append(" " * (max(column, free) - len(text))).append(label, style=style)
    return text


def _unit(values: Array, low: float, high: float, log: bool = False) -> Array:
    """Values scaled to 0..1 between low and high; 0.5 when there is no extent."""
    if log:
        values, low, high = np.log(values), math.log(low), math.log(high)
    with np.errstate(over="ignore"):
        extent = high - low
    if not (math.isfinite(extent) and extent > 0):
        return np.full(len(values), 0.5)
    return (values - low) / extent


class _Canvas:
    """Braille dots, 2 x 4 in a character."""

    DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._dots = np.zeros((height, width), dtype=np.int64)
        self._styles: dict[tuple[int, int], str] = {}

    def column(self, x: float) -> int:
        """Character column of a position 0..1."""
        return min(max(round(x * (2 * self.width - 1)) // 2, 0), self.width - 1)

    def draw(self, x: Array, y: Array, style: str) -> None:
        """Straight lines between points in 0..1. If several share a column of dots, their range is drawn."""
        if not len(x):
            return
        columns = np.rint(x * (2 * self.width - 1)).astype(int)
        levels = np.rint((1 - y) * (4 * self.height - 1)).astype(int)
        order = np.argsort(columns, kind="stable")
        columns, levels = columns[order], levels[order]
        before = int(levels[0])
        for column in range(int(columns[0]), int(columns[-1]) + 1):
            a, b = np.searchsorted(columns, (column, column + 1))
            here = levels[a:b].tolist() or [round(float(np.interp(column, columns[[a - 1, a]], levels[[a - 1, a]])))]
            for dot in range(min(before, *here), max(before, *here) + 1):
                self._set(column, dot, style)
            before = here[-1]

    def _set(self, x: int, y: int, style: str) -> None:
        cell = (y // 4, x // 2)
        self._dots[cell] |= self.DOTS[x % 2][y % 4]
        self._styles[cell] = style

    def rows(self, marks: Mapping[int, str], ascii_only: bool) -> list[list[tuple[str, str]]]:
        """Per character row: (glyph, style) per column. marks: styles of the columns that are marked."""

        def glyph(row: int, column: int) -> tuple[str, str]:
            dots = int(self._dots[row, column])
            if column in marks and not dots:
                return ("|" if ascii_only else "┊", marks[column])
            style = marks.get(column) or self._styles.get((row, column), "none")
            if ascii_only:
                return ("*" if dots else " ", style)
            return (chr(0x2800 + dots) if dots else " ", style)

        return [[glyph(row, column) for column in range(self.width)] for row in range(self.height)]
