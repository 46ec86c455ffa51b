"""`stabwatch forecast`: extrapolation from small runs to larger models and higher learning rates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from stabwatch.cli.arguments import Exit, JsonOption, RunsArgument

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from stabwatch.analysis.compare.forecast import Crossing, Forecast, Name

UNITS = {"parameters": "parameters", "learning_rate": "learning rate"}


def forecast(
    runs: RunsArgument,
    parameters: Annotated[
        float | None, typer.Option("--parameters", min=1.0, help="Size of a model to predict, such as 7e9.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", min=1e-12, help="Peak learning rate to predict.")
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option("--epsilon", min=0.0, help="Epsilon of Adam. Default: that of the logs, or 1e-8.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Extrapolate attention logits, gradient RMS and the loss.

    Fits power laws over model size and peak learning rate of the runs, and shows where they cross the known
    limits: attention logits of 100 and 10,000, a gradient RMS of Adam's epsilon. Intervals are 95 % prediction
    intervals. Of the loss: a power law with a floor over the model size, how well the best learning rate transfers
    between sizes, and whether the largest run follows the smaller ones. Exit code 1: no law could be fitted; the
    reasons are printed.
    """
    from stabwatch.analysis.compare.curve_set import load_curve_sets
    from stabwatch.analysis.compare.forecast import SCHEMA_VERSION
    from stabwatch.analysis.compare.forecast import forecast as laws
    from stabwatch.analysis.compare.scaling import scaling
    from stabwatch.analysis.sources import open_sources
    from stabwatch.cli.render.console import console, print_json
    from stabwatch.cli.render.progress_bar import ProgressBar
    from stabwatch.cli.render.scaling import rendered as scaling_rendered

    with ProgressBar("reading") as bar:
        subjects = load_curve_sets(open_sources(runs, bar.reading), progress=bar)
        bar.working("fitting")
        found = laws(subjects, parameters, learning_rate, epsilon or None)
        sizes = scaling(subjects, parameters)
    if as_json:
        laws_found = [one.to_dict() for one in found]
        print_json({"schema_version": SCHEMA_VERSION, "forecasts": laws_found, "scaling": sizes.to_dict()})
    else:
        out = console()
        for one in found:
            for part in rendered(one):
                out.print(part)
        for part in scaling_rendered(sizes):
            out.print(part)
        out.print(assumptions())
    if all(one.refused for one in found) and sizes.loss.refused:
        raise typer.Exit(Exit.FIRED)


def assumptions() -> RenderableType:
    """The assumptions of the intervals."""
    from rich.text import Text

    return Text(
        "Assumptions: the power law continues beyond the runs; data, schedule and architecture do not change. "
        "Intervals are 95 % prediction intervals for one further run.",
        style="faint",
    )


def rendered(found: Forecast) -> Iterator[RenderableType]:
    """Print the law, its crossings and the prediction; or why there is none."""
    from rich.padding import Padding
    from rich.text import Text

    yield Text(found.quantity, style="title") + Text(f"  ({found.signal})", style="faint")
    body: list[RenderableType] = []
    if found.refused:
        body.append(Text(f"No forecast: {found.refused}.", style="warning"))
    else:
        body += [_law(found), *_crossings(found)]
        if found.prediction is not None:
            body.append(_prediction(found))
    body += [Text(f"Note: {caution}.", style="faint") for caution in found.cautions]
    for part in body:
        yield Padding(part, (0, 0, 0, 2), expand=False)
    yield Text()


def _law(found: Forecast) -> RenderableType:
    from rich.text import Text

    from stabwatch.cli.render.text import number

    factors = " × ".join(f"{UNITS[term.name]}^{term.exponent:.3g}" for term in found.terms)
    ranges = "; ".join(f"{term.low:.3g} to {term.high:.3g}" for term in found.terms)
    return Text(
        f"{number(found.constant)} × {factors}  (exponents with 95 %: {ranges}). Explains {found.r2:.1%} of the "
        f"variation in {len(found.points)} runs; two thirds of them are within a factor of {found.scatter:.3g}."
    )


def _crossings(found: Forecast) -> Iterator[Table]:
    from rich.table import Table

    from stabwatch.cli.render.text import number

    for along in dict.fromkeys(c.along for c in found.crossings):
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="faint")
        rows = [c for c in found.crossings if c.along == along]
        other = [UNITS[term.name] for term in found.terms if term.name != along]
        for heading in ("limit", *other, f"reached at {UNITS[along]}", "95 %: from", "to", ""):
            table.add_column(heading, justify="right")
        table.columns[-1].justify = "left"
        for c in rows:
            fixed = [number(c.fixed)] if other else []
            ends = (("never" if c.at is None else number(c.at)), number(c.first), number(c.last) if c.last else "open")
            table.add_row(number(c.limit), *fixed, *ends, _how_far(c, found, along))
        yield table


def _how_far(c: Crossing, found: Forecast, along: Name) -> str:
    from stabwatch.analysis.compare.forecast import FAR
    from stabwatch.cli.render.text import number

    if c.at is None:
        return ""
    if c.at <= min(p.at(along) for p in found.points):
        return "already at the smallest run"
    if c.beyond == 1:
        return "within the runs"
    return f"{number(c.beyond)} times beyond the runs" + (": far" if c.beyond > FAR else "")


def _prediction(found: Forecast) -> RenderableType:
    from rich.text import Text

    from stabwatch.cli.render.text import number

    p = found.prediction
    assert p is not None
    where = f"{number(p.parameters)} parameters, learning rate {number(p.learning_rate)}"
    return Text(f"Predicted at {where}: {number(p.value)} (95 %: {number(p.low)} to {number(p.high)}).")
