"""Charts and heat maps as SVG, thinned to the available columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stabwatch.cli.render.html.markup import safe
from stabwatch.cli.render.text import number, tail

Series = tuple[NDArray[np.int64], NDArray[np.float64]]
Mark = tuple[int, str, str]
"""Step, severity, text."""
Bar = tuple[str, str, int, int | None]
"""Name, severity, onset, end (None: to the end of the run)."""
WIDTH, LEFT, HEIGHT = 720, 80, 210
COLUMNS = 320
DECADES = 30.0
"""Ratio of the largest to the smallest value from which the scale is logarithmic."""

_VIRIDIS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Colours of a perceptually uniform map, also in grey and for colour-blind readers (van der Walt and Smith 2015)."""


def shade(share: float) -> str:
    """The colour of a share from 0 to 1."""
    at = min(max(share, 0.0), 1.0) * (len(_VIRIDIS) - 1)
    i = min(int(at), len(_VIRIDIS) - 2)
    red, green, blue = (a + (b - a) * (at - i) for a, b in zip(_VIRIDIS[i], _VIRIDIS[i + 1], strict=True))
    return f"rgb({red:.0f},{green:.0f},{blue:.0f})"


def chart(series: Series, marks: Sequence[Mark] = ()) -> str:
    """A curve as the envelope of its smallest and largest value in each column, with marked steps."""
    steps, values = series
    good = np.isfinite(values)
    if not good.any():
        return ""
    x, y = steps[good], values[good]
    log = bool(y.min() > 0 and y.max() / y.min() > DECADES)
    scaled = np.log10(y) if log else y
    low, high = float(scaled.min()), float(scaled.max())
    first, last = int(steps.min()), int(steps.max())
    room = WIDTH - LEFT - 10

    def across(step: float) -> float:
        return LEFT + room * (step - first) / max(last - first, 1)

    down = 20 + (HEIGHT - 50) * (1 - (scaled - low) / (high - low if high > low else 1.0))
    columns = ((x - first) / max(last - first, 1) * COLUMNS).astype(int)
    curves: list[list[str]] = [[]]
    for part in np.split(np.arange(len(x)), np.flatnonzero((np.diff(columns) != 0) | (np.diff(x) < 0)) + 1):
        if part[0] and x[part[0]] < x[part[0] - 1]:
            curves.append([])  # the step went back: another line
        for i in sorted({int(part[down[part].argmin()]), int(part[down[part].argmax()])}):
            curves[-1].append(f"{across(float(x[i])):.1f},{down[i]:.1f}")
    lines = "".join(
        f'<g class="{safe(severity)}"><line x1="{across(step):.1f}" x2="{across(step):.1f}" y1="14" y2="{HEIGHT - 28}" '
        f'stroke="currentColor" stroke-width="1.5" stroke-dasharray="4 3"/><title>step {step}: {safe(text)}</title></g>'
        for step, severity, text in marks
        if first <= step <= last
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" class="chart">{lines}'
        + "".join(f'<polyline points="{" ".join(curve)}" class="curve"/>' for curve in curves)
        + f'<text x="{LEFT - 8}" y="24" text-anchor="end">{number(float(y.max()))}</text>'
        f'<text x="{LEFT - 8}" y="{HEIGHT - 30}" text-anchor="end">{number(float(y.min()))}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 8}">step {first:,}</text>'
        f'<text x="{WIDTH - 10}" y="{HEIGHT - 8}" text-anchor="end">{last:,}{", log scale" if log else ""}</text></svg>'
    )


def timeline(bars: Sequence[Bar], first: int, last: int) -> str:
    """A time-line: one bar per incident, in the given order, over the steps from first to last."""
    if not bars:
        return ""
    left = 290
    room, rows = WIDTH - left - 12, []

    def across(step: float) -> float:
        return left + room * min(max((step - first) / max(last - first, 1), 0.0), 1.0)

    for row, (name, severity, onset, until) in enumerate(bars):
        top, start = 4 + 20 * row, across(onset)
        wide = max(across(last if until is None else until) - start, 3.0)
        rows.append(
            f'<text x="{left - 8}" y="{top + 13}" text-anchor="end">{safe(tail(name, 40))}</text>'
            f'<line x1="{left}" x2="{WIDTH - 12}" y1="{top + 9}" y2="{top + 9}" stroke="var(--edge)"/>'
            f'<g class="{safe(severity)}"><rect x="{start:.1f}" y="{top + 3}" width="{wide:.1f}" height="12" rx="2" '
            f'fill="currentColor"/><title>{safe(name)}: step {onset:,} to {"the end" if until is None else until}'
            f"</title></g>"
        )
    height = 4 + 20 * len(bars) + 20
    rows.append(f'<text x="{left}" y="{height - 5}">step {first:,}</text>')
    rows.append(f'<text x="{WIDTH - 12}" y="{height - 5}" text-anchor="end">{last:,}</text>')
    return f'<div class="wide"><svg viewBox="0 0 {WIDTH} {height}" role="img" class="map">{"".join(rows)}</svg></div>'


def heat_map(layers: Sequence[tuple[str, Series]]) -> str:
    """A heat map with one row per layer, in forward order. The colour is the largest value in the column."""
    finite = [values[np.isfinite(values)] for _, (_, values) in layers]
    everything = np.concatenate(finite) if finite else np.array([])
    if not len(everything):
        return ""
    log = bool(everything.min() > 0)
    low, high = (float(np.log10(v)) if log else float(v) for v in (everything.min(), everything.max()))
    first = min(int(steps.min()) for _, (steps, _) in layers if len(steps))
    last = max(int(steps.max()) for _, (steps, _) in layers if len(steps))
    left, cells = 150, 90
    wide, rows = (WIDTH - left - 10) / cells, []
    for row, (name, (steps, values)) in enumerate(layers):
        top = 4 + 17 * row
        rows.append(f'<text x="{left - 8}" y="{top + 12}" text-anchor="end">{safe(tail(name, 22))}</text>')
        column = np.minimum((steps - first) * cells // max(last - first + 1, 1), cells - 1)
        places = np.unique(column)
        for place, end in zip(places, [*places[1:], *(places[-1:] + 1)], strict=True):
            inside = values[column == place]
            good = inside[np.isfinite(inside)]
            bad = len(good) < len(inside)
            value = float(good.max()) if len(good) else float("nan")
            level = (np.log10(value) if log else value) if len(good) else low
            share = (level - low) / (high - low) if high > low else 0.0
            fill = "var(--critical)" if bad else shade(share)
            text = f"{safe(name)}: {'not finite' if bad else number(value)}"
            rows.append(
                f'<rect x="{left + wide * place:.1f}" y="{top}" width="{wide * (end - place) + 0.3:.1f}" height="16" '
                f'fill="{fill}"><title>{text}</title></rect>'
            )
    height = 4 + 17 * len(layers) + 22
    scale = f"{number(float(everything.min()))} (dark) to {number(float(everything.max()))} (bright)"
    rows.append(f'<text x="{left}" y="{height - 6}">step {first:,}</text>')
    rows.append(
        f'<text x="{WIDTH - 10}" y="{height - 6}" text-anchor="end">{last:,}; {scale}{", log" if log else ""}</text>'
    )
    return f'<div class="wide"><svg viewBox="0 0 {WIDTH} {height}" role="img" class="map">{"".join(rows)}</svg></div>'
