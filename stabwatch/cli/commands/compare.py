"""`stabwatch compare`: differences between runs, and the step from which they differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from stabwatch.cli.arguments import JsonOption, RunsArgument
from stabwatch.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from stabwatch.analysis.compare.compare import Comparison, Diverged, Pair
    from stabwatch.analysis.compare.divergence_point import DivergencePoint
    from stabwatch.analysis.compare.sweep import Sensitivity
    from stabwatch.analysis.compare.widths import Matched, Widths

MOST_ROWS = 12
"""Most rows of a table; the rest is counted, and is in `--json`."""


def compare(runs: RunsArgument, as_json: JsonOption = False) -> None:
    """Show what differs between runs, and where they diverge.

    The first run is the reference. Shows differences in configuration; the step from which curves differ by more than
    their noise, and the first signal and layer; singular values and sub-layer gains if widths differ; the learning-rate
    sensitivity if the runs are a sweep.
    """
    from stabwatch.analysis.compare.compare import compare as side_by_side
    from stabwatch.analysis.sources import open_sources
    from stabwatch.cli.render.console import console, print_json
    from stabwatch.cli.render.progress_bar import ProgressBar

    with ProgressBar("reading") as bar:
        found = open_sources(runs, bar.reading)
        if len(found) < 2:
            raise ConfigError(f"A comparison needs two or more runs, and {found[0].path} is one.")
        comparison = side_by_side(found, progress=bar)
    if as_json:
        print_json(comparison.to_dict())
    else:
        out = console()
        for part in rendered(comparison):
            out.print(part)


def rendered(found: Comparison) -> Iterator[RenderableType]:
    """Print all sections; empty ones are left out."""
    from rich.text import Text

    from stabwatch.cli.render.text import clean

    yield from _section("What differs", _differences(found))
    if found.window > 1:
        yield Text(f"The runs are long: each point is {found.window} steps.", style="faint")
    verdicts = (Text(f"{clean(run)}: {clean(said)}") for run, said in zip(found.runs, found.verdicts, strict=True))
    yield from _section("Verdict of each run", *verdicts)
    for pair in found.pairs:
        title = f"{clean(pair.run)} compared with {clean(found.runs[0])}"
        yield from _section(title, *_pair(pair))
    if found.widths is not None and _differ(found.widths):
        yield from _section("Across widths, at the end of each run", *_widths(found, found.widths))
    if found.sensitivity:
        yield from _section("Learning-rate sensitivity", *map(_sensitivity, found.sensitivity))


def _section(title: str, *body: RenderableType) -> Iterator[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    yield Text(title, style="title")
    for part in body:
        yield Padding(part, (0, 0, 0, 2), expand=False)
    yield Text()


def _table(*headings: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="faint")
    for heading in headings:
        table.add_column(heading)
    return table


def _differences(found: Comparison) -> RenderableType:
    from rich.text import Text

    from stabwatch.cli.render.text import clean

    if not found.differences:
        return Text("Nothing that is in the logs.")
    table = _table("", *map(clean, found.runs))
    for row in found.differences:
        table.add_row(clean(row.name), *(Text(_value(value)) for value in row.values))
    return table


def _value(value: Any) -> str:
    from stabwatch.cli.render.text import clean

    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "-" if value is None else clean(f"{value:g}" if isinstance(value, float) else value)


def _pair(pair: Pair) -> Iterator[RenderableType]:
    from rich.text import Text

    from stabwatch.cli.render.text import count

    yield Text(_loss(pair.loss))
    if not pair.diverged:
        yield Text(f"No signal diverges, of {count(pair.compared, 'series')} compared.".replace("seriess", "series"))
    else:
        yield Text(_first(pair))
        yield _diverged(pair.diverged[:MOST_ROWS])
    left = [
        f"{len(pair.diverged) - MOST_ROWS:,} more diverge later" if len(pair.diverged) > MOST_ROWS else "",
        f"{pair.compared - len(pair.diverged):,} of {pair.compared:,} never diverge" if pair.diverged else "",
        f"{pair.short:,} have too few common points" if pair.short else "",
        f"{pair.only_here:,} are only in this run" if pair.only_here else "",
        f"{pair.only_there:,} are only in the reference" if pair.only_there else "",
    ]
    if any(left):
        yield Text("Series: " + ", ".join(filter(None, left)) + ".", style="faint")


def _loss(p: DivergencePoint | None) -> str:
    if p is None:
        return "The losses have too few common points."
    if p.differ is None:
        return f"The losses are the same at all {p.points:,} common steps."
    if p.step is None:
        return (
            f"The losses never differ by more than their noise ({p.noise:.2g}); first difference at step {p.differ:,}."
        )
    after = f"after step {p.before:,}" if p.before is not None else "from the first common step"
    met = f"; after step {p.until:,} they are within their noise again" if p.until is not None else ""
    return f"The losses diverge at step {p.step:,} ({after}): {_gap(p, p.gap)} there, {_gap(p, p.end)} at the end{met}."


def _gap(p: DivergencePoint, gap: float) -> str:
    from stabwatch.cli.render.text import number

    return f"{number(gap)} times the reference" if p.relative else f"a difference of {number(gap)} typical sizes"


def _first(pair: Pair) -> str:
    from stabwatch.cli.render.text import clean

    first = pair.diverged[0]
    where = f" in {clean(first.layer)}" if first.layer else ""
    text = f"First to diverge: {clean(first.signal)}{where}, at step {first.divergence.step:,}"
    others = pair.together - 1
    return f"{text}; {others:,} more too close to that step for a reliable order." if others else f"{text}."


def _diverged(rows: Sequence[Diverged]) -> Table:
    from stabwatch.cli.render.text import clean, number, tail

    table = _table("step", "signal", "layer", "there", "at the end", "noise", "until")
    for column in (0, 3, 4, 5, 6):
        table.columns[column].justify = "right"
    for row in rows:
        p = row.divergence
        until = "the end" if p.until is None else f"{p.until:,}"
        sign = "×" if p.relative else ""
        gaps = (f"{sign}{number(gap)}" for gap in (p.gap, p.end))
        table.add_row(f"{p.step:,}", clean(row.signal), tail(clean(row.layer), 28), *gaps, number(p.noise), until)
    return table


def _differ(found: Widths) -> bool:
    return any(abs(width - 1) > 0.05 for width in found.widths)


def _widths(found: Comparison, widths: Widths) -> Iterator[RenderableType]:
    from rich.text import Text

    for title, rows in (("Top singular values", widths.singular_values), ("Sub-layer gains", widths.gains)):
        if not rows:
            yield Text(f"{title}: not measured in all runs.")
            continue
        exponent, spread, share = widths.summary(rows)
        yield Text(
            f"{title}: {share:.0%} of {len(rows):,} layers match within 10 %; median spread ×{spread:.3g}; "
            f"median growth as width^{exponent:.2f}."
        )
        yield _layers(found, widths, rows)
    for signal, rows in widths.experts.items():
        exponent, spread, _ = widths.summary(rows)
        grows = f"{signal} of {len(rows):,} mixtures of experts: median growth as width^{exponent:.2f}"
        yield Text(f"{grows}, median spread ×{spread:.3g}.")


def _layers(found: Comparison, widths: Widths, rows: Sequence[Matched]) -> Table:
    from stabwatch.cli.render.text import clean, number, tail

    runs = (f"{clean(run)} (×{width:.3g})" for run, width in zip(found.runs, widths.widths, strict=True))
    table = _table("layer", *runs, "spread", "width^")
    for column in table.columns[1:]:
        column.justify = "right"
    worst = sorted(rows, key=lambda row: -row.spread)[:MOST_ROWS]
    for row in worst:
        values = map(number, row.values)
        table.add_row(tail(clean(row.layer), 30), *values, f"×{row.spread:.3g}", f"{row.exponent:.2f}")
    return table


def _sensitivity(found: Sensitivity) -> RenderableType:
    from rich.text import Text

    from stabwatch.cli.render.text import number

    losses = ", ".join(f"{number(loss)} at {rate:g}" for rate, loss in zip(found.rates, found.losses, strict=True))
    return Text(
        f"{found.parameters:,.0f} parameters: {found.value:.4g} over {len(found.rates)} learning rates "
        f"(best {found.best:.4g} at {found.best_rate:g}, initial {found.initial:.4g}). Loss: {losses}."
    )
