"""What a foreign training log says, for people: the verdict, causes, the loss with its events, what was not seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from stabwatch.alerts.rule import SEVERITIES
from stabwatch.cli.render.layout import cause_section, new_table, section
from stabwatch.cli.render.plot import Chart, Line
from stabwatch.cli.render.text import clean, count, number

if TYPE_CHECKING:
    from stabwatch.analysis.findings import Finding
    from stabwatch.analysis.verdict import Examination, LogReport

MOST_EVENTS = 20
"""Events in a table and on a chart; the rest is counted, and stands in `--json`."""
MOST_RUNS = 8
"""Calm runs of one log that are listed by name."""
DECADES = 30.0
"""Largest over least loss from which a logarithmic chart shows more."""
HALVES = ("line", "cyan")
"""Styles of the stretches of a run that was begun again, in turn."""


class LogView:
    """Renders what was found in a log; of many runs, the calm ones in a line each."""

    def __init__(self, report: LogReport) -> None:
        self.report = report

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        runs = self.report.runs
        if not runs:
            yield Text("No record of training was found.", style="warning")
        sick = [run for run in runs if not run.calm]
        shown = runs if len(runs) == 1 else sick
        if len(runs) > 1:
            yield Text(
                f"{count(len(runs), 'run')} in this log, {len(sick)} with trouble.", style="warning" if sick else "calm"
            )
        for run in shown:
            yield from _run(run, len(runs) > 1, options)
        calm = [run for run in runs if run.calm and run not in shown]
        if calm:
            yield from section("Calm runs", *(_line(run) for run in calm[:MOST_RUNS]))
            if len(calm) > MOST_RUNS:
                yield Text(f"  and {len(calm) - MOST_RUNS:,} more", style="faint")
        yield from section("The log", self._facts())

    def _facts(self) -> Table:
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(style="faint", no_wrap=True)
        grid.add_column()
        grid.add_row("log", Text(clean(self.report.path)))
        grid.add_row("format", Text(clean(self.report.format)))
        for place, note in enumerate(self.report.notes):
            grid.add_row("notes" if place == 0 else "", Text(clean(note)))
        return grid


def _run(run: Examination, named: bool, options: ConsoleOptions) -> Iterator[RenderableType]:
    if named:
        yield Text()
        yield Text(f"Run {clean(run.run.name)}", style="title")
    severities = [finding.severity for finding in run.findings if finding.trouble]
    worst = min(severities, key=SEVERITIES.index, default="calm")
    yield Text(clean(run.diagnosis.verdict), style=worst)
    for place, found in enumerate(run.diagnosis.causes, 1):
        yield from cause_section(place, found)
    shown = _shown(run)
    if run.loss is not None:
        yield from section(Text(clean(run.loss), style="title"), _chart(run, shown))
    if shown:
        yield from section("What happened, in order", _events(run, shown, options))
    yield from section("What this log does not show", *(Text(clean(line), style="none") for line in run.limitations))


def _shown(run: Examination) -> list[Finding]:
    """The gravest, if there are too many, in the order of the log."""
    gravest = sorted(run.findings, key=lambda f: SEVERITIES.index(f.severity))[:MOST_EVENTS]
    return [finding for finding in run.findings if finding in gravest]


def _chart(run: Examination, shown: list[Finding]) -> Chart:
    column = next(c for c in run.run.columns if c.name == run.loss)
    cuts = np.flatnonzero(np.diff(column.steps) < 0) + 1
    pieces = zip(np.split(column.steps, cuts), np.split(column.values, cuts), strict=True)
    lines = [Line(steps, values, HALVES[place % 2]) for place, (steps, values) in enumerate(pieces)]
    finite = column.values[np.isfinite(column.values)]
    log = len(finite) > 0 and finite.min() > 0 and finite.max() / finite.min() > DECADES
    return Chart(lines, log=log, events=[(f.step, f.severity if f.trouble else "faint") for f in shown])


def _events(run: Examination, shown: list[Finding], options: ConsoleOptions) -> Table:
    lined = any(finding.line >= 0 for finding in shown)
    grid = new_table("", "step", "until", *(["line"] if lined else []), "what happened", gap=2)
    for column in grid.columns[:-1]:
        column.justify = "right"
        column.no_wrap = True
    for place, finding in enumerate(shown, 1):
        until = "end" if finding.end_step is None else str(finding.end_step)
        cells: list[RenderableType] = [Text(str(place), style=finding.severity), str(finding.step), until]
        if lined:
            cells.append(str(finding.line) if finding.line >= 0 else "")
        words = Text().append(finding.kind.replace("_", " "), style=finding.severity)
        grid.add_row(*cells, words.append(f"  {clean(finding.text)}"))
    if len(run.findings) > len(shown):
        more = len(run.findings) - len(shown)
        grid.add_row("", "", "", *([""] if lined else []), Text(f"and {more:,} more", style="faint"))
    return grid


def _line(run: Examination) -> Text:
    column = next((c for c in run.run.columns if c.name == run.loss), None)
    course = (
        "no loss" if column is None or not len(column) else f"{number(column.values[0])} to {number(column.values[-1])}"
    )
    return Text(f"{clean(run.run.name)}: {count(run.records, 'record')}, {clean(course)}")
