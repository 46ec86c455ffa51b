"""Analyses as text: verdict, causes, incidents in order, curves, and limitations of the log."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from stabwatch.alerts.incidents import rank, worst_of
from stabwatch.cli.render.layout import bullets, cause_section, new_table, section
from stabwatch.cli.render.plot import Chart, Line
from stabwatch.cli.render.text import clean, count, duration, listed, mapping, missing, notes, number, tail

if TYPE_CHECKING:
    from stabwatch.alerts import Cause
    from stabwatch.alerts.incidents import Incident
    from stabwatch.analysis import Analysis

MOST_ROWS = 20
"""Most incidents in a table and on a chart; the rest is counted, and is in `--json`."""
MOST_RUNS = 8
"""Most calm runs of one log that are listed by name."""
LINE_STYLES = ("red", "yellow", "cyan", "green", "blue")
"""Styles of the layers in a chart, in forward order."""
SEGMENT_STYLES = ("line", "cyan")
"""Alternating styles of the segments of a run whose step went back."""
BAR = 16
"""Width of the time-line on a wide terminal."""
WIDE = 110
"""Smallest width of a wide terminal."""
DECADES = 30.0
"""Ratio of the largest to the smallest loss from which the chart is logarithmic."""


class Report:
    """Renders the analyses of the runs of one log. If there are many, each calm run takes one line."""

    def __init__(self, runs: Sequence[Analysis]) -> None:
        self.runs = runs

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        runs = self.runs
        if not runs:
            yield Text("No training record was found.", style="warning")
            return
        problems = [run for run in runs if not run.calm]
        shown = runs if len(runs) == 1 else problems
        if len(runs) > 1:
            words = f"{count(len(runs), 'run')} in this log, {len(problems)} with problems."
            yield Text(words, style="warning" if problems else "calm")
        for run in shown:
            yield from _run(run, len(runs) > 1, options)
        calm = [run for run in runs if run.calm and run not in shown]
        if calm:
            yield from section("Calm runs", *(_line(run) for run in calm[:MOST_RUNS]))
            if len(calm) > MOST_RUNS:
                yield Text(f"  and {len(calm) - MOST_RUNS:,} more", style="faint")
        if len(runs) > 1 or not runs[0].is_run_folder:
            yield from section("The log", _facts(log_facts(runs[0])))


def _run(run: Analysis, named: bool, options: ConsoleOptions) -> Iterator[RenderableType]:
    if named:
        yield Text()
        yield Text(f"Run {clean(run.name)}", style="title")
    yield Text(clean(run.diagnosis.verdict), style="warning" if run.silent else worst_of(run.incidents))
    for place, found in enumerate(run.diagnosis.causes, 1):
        yield from cause_section(place, found, since_words(run, found))
    shown = shown_incidents(run, MOST_ROWS)
    if shown:
        yield from section("What happened, in order", _incidents(run, shown, options))
    for title, chart in _charts(run, shown):
        yield from section(title, chart)
    yield from section("What this log does not show", *_limitations(run))
    if run.is_run_folder:
        yield from section("The run", _facts(run_facts(run)))


def since_words(run: Analysis, found: Cause) -> str:
    """Since when a cause holds, in the unit of the log, and how sure that is; a log may have no records."""
    sure = "certain" if found.confidence == "certain" else f"a {found.confidence} cause"
    if not run.records and not run.is_run_folder:
        return sure
    return f"since {run.unit} {found.since_step:,}, {sure}"


def shown_incidents(run: Analysis, most: int) -> list[Incident]:
    """The most severe incidents if there are too many, in the order of the log."""
    gravest = sorted(run.incidents, key=lambda i: rank(i.severity))[:most]
    return [incident for incident in run.incidents if incident in gravest]


def place_of(incident: Incident) -> str:
    """Where: 'first in blocks.0, then in blocks.1 and 2 more'; empty for the whole run."""
    layers = [clean(layer) for layer in incident.layers]
    if not layers:
        return ""
    then = f", then in {listed(layers[1:], 2)}" if len(layers) > 1 else ""
    return f"first in {layers[0]}{then}" if then else f"in {layers[0]}"


def _incidents(run: Analysis, shown: Sequence[Incident], options: ConsoleOptions) -> Table:
    """One row per incident: its number on the chart, its steps, when an alert fired, and a bar over the run."""
    wide, lined = options.max_width >= WIDE, any(incident.line is not None for incident in shown)
    headings = ["", run.unit, "until", *(["line"] if lined else []), "alert", *(["time-line"] if wide else [])]
    table = new_table(*headings, "what happened", gap=2)
    for column in table.columns[: -2 if wide else -1]:
        column.justify = "right"
        column.no_wrap = True
    first, last = run.first_step or 0, run.last_step or 0
    placed = bool(run.records) or run.is_run_folder
    for place, incident in enumerate(shown, 1):
        until = "end" if incident.last_step is None else str(incident.last_step)
        cells: list[RenderableType] = [
            Text(str(place), style=incident.severity),
            *([str(incident.first_step), until] if placed else ["", ""]),
            *([("" if incident.line is None else str(incident.line))] if lined else []),
            "none" if incident.live_step is None else str(incident.live_step),
            *([timeline(incident, first, last, BAR, options.ascii_only)] if wide else []),
        ]
        words = Text().append(clean(incident.condition), style=incident.severity)
        where = place_of(incident)
        table.add_row(*cells, words.append(f"  {where + ': ' if where else ''}{clean(incident.text)}"))
    if len(run.incidents) > len(shown):
        more = Text(f"and {len(run.incidents) - len(shown):,} more", style="faint")
        table.add_row(*[""] * (len(table.columns) - 1), more)
    return table


def timeline(incident: Incident, first: int, last: int, width: int = BAR, ascii_only: bool = False) -> Text:
    """A bar over the run: thin while normal, medium outside the normal range, thick while an alert fires."""
    thin, medium, thick = "-=#" if ascii_only else "─━█"
    changes = [(first, thin, "faint"), (incident.first_step, medium, incident.severity)]
    if incident.live_step is not None:
        changes.append((max(incident.live_step, incident.first_step), thick, incident.severity))
    if incident.last_step is not None:
        changes.append((incident.last_step, thin, "faint"))
    scale = width / max(last - first, 1)
    at = [min(max(round((step - first) * scale), 0), width - 1) for step, *_ in changes] + [width]
    text = Text(no_wrap=True)
    for place, (_, glyph, style) in enumerate(changes):
        wide = 1 if glyph != thin and at[place + 1] <= at[place] and place == len(changes) - 2 else 0
        text.append(glyph * max(at[place + 1] - at[place], wide), style=style)
    return text[:width]


def _charts(run: Analysis, shown: Sequence[Incident]) -> Iterator[tuple[Text, Chart]]:
    """The loss with the incidents, and by layer the signal of the first cause."""
    if run.loss is not None and len(run.loss):
        yield Text(clean(run.loss.name), style="title"), _loss_chart(run, shown)
    offender = _offender(run)
    if offender is None:
        return
    lines, title = [], Text().append(offender.signal, style="title")
    for layer, style in zip(_worst_layers(run, offender), LINE_STYLES, strict=False):
        lines.append(Line(*run.run.series(offender.signal, layer), style))
        title.append(f"  {clean(layer)}", style=style)
    yield title, Chart(lines[::-1], mark=offender.first_step, log=True)  # the first layer is on top


def _loss_chart(run: Analysis, shown: Sequence[Incident]) -> Chart:
    column = run.loss
    assert column is not None
    cuts = np.flatnonzero(np.diff(column.steps) < 0) + 1
    pieces = zip(np.split(column.steps, cuts), np.split(column.values, cuts), strict=True)
    lines = [Line(steps, values, SEGMENT_STYLES[place % 2]) for place, (steps, values) in enumerate(pieces)]
    finite = column.values[np.isfinite(column.values)]
    log = len(finite) > 0 and finite.min() > 0 and finite.max() / finite.min() > DECADES
    events = [(i.first_step, i.severity if i.is_problem else "faint") for i in shown]
    return Chart(lines, log=bool(log), events=events, unit=run.unit)


def _offender(run: Analysis) -> Incident | None:
    """The incident of the first cause with a signal by layer."""
    signals = {key.signal for key in run.run.keys if key.layer}
    for cause in run.diagnosis.causes:
        for incident in run.incidents:
            if incident.condition == cause.name and incident.layers and incident.signal in signals:
                return incident
    return None


def _worst_layers(run: Analysis, offender: Incident) -> list[str]:
    """At most one layer per style, in forward order; layers with an early onset have priority."""
    layers = [key.layer for key in run.run.keys if key.signal == offender.signal]
    kept = list(dict.fromkeys([*(a for a in offender.layers if a in layers), *layers]))[: len(LINE_STYLES)]
    return [layer for layer in layers if layer in kept]


def limitation_lines(run: Analysis) -> list[str]:
    """Limitations of the log, and what should have been measured and was not, with the reason."""
    gaps = [f"Not measured: {tap} at {listed(sites)}: {why}" for (tap, why), sites in missing(run.coverage).items()]
    lines = [*map(clean, run.limitations), *gaps]
    if not lines:
        lines = ["Nothing is missing: everything that should have been measured was measured."]
    return [*lines, *(f"Note on {tap}: {note}." for tap, note in notes(run.coverage))]


def _limitations(run: Analysis) -> Iterator[RenderableType]:
    yield bullets("•", limitation_lines(run))


def damage(run: Analysis) -> str:
    """Parts of the log that could not be read, if any."""
    r = run.run
    unreadable = ((r.damaged_records, "unreadable record"), (r.bad_event_lines, "unreadable event"))
    parts = [f"{count(n, what)} skipped" for n, what in unreadable if n]
    if r.torn_bytes:
        parts.append(f"an incomplete record of {count(r.torn_bytes, 'byte')} at the end")
    if r.unreadable:
        parts.append(f"{count(len(r.unreadable), 'unreadable file')} left out")
    return ", ".join(parts)


def run_facts(run: Analysis) -> list[tuple[str, str]]:
    """Facts of a run folder: model, host, time, and how the run ended."""
    meta = run.run.meta
    model = mapping(meta.model)
    name = clean(model.get("name") or "unknown")
    if isinstance(model.get("parameters"), int):
        name += f", {model['parameters']:,} parameters"
    versions = ", ".join(f"{clean(k)} {clean(v)}" for k, v in mapping(meta.versions).items())
    first = next((e.time for e in run.run.events if e.kind == "start"), meta.created)
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(first))
    extent = f", {run.first_step:,} to {run.last_step:,}" if run.first_step is not None and run.last_step else ""
    facts = [
        ("run", clean(meta.run)),
        ("model", name),
        ("steps", f"{run.records:,} recorded{extent}, {duration(run.duration)}"),
        ("began", f"{began} on {clean(meta.host)}" + (f", {meta.world_size} ranks" if meta.world_size > 1 else "")),
        ("ended", clean(run.ended or "no end was recorded: the run is still running, or its process was killed")),
        *(("attempts" if place == 0 else "", clean(note)) for place, note in enumerate(run.notes)),
        ("versions", versions or "unknown"),
        ("errors", count(len(run.errors), "probe error") if run.errors else "none in stabwatch"),
        ("log", clean(run.path)),
    ]
    return [*facts, ("damage", damage(run))] if damage(run) else facts


def log_facts(run: Analysis) -> list[tuple[str, str]]:
    """Facts of another trainer's log: path, format, and notes of its reader."""
    notes = [("notes" if place == 0 else "", clean(note)) for place, note in enumerate(run.notes)]
    return [("log", clean(run.path)), ("format", clean(run.form)), *notes]


def _facts(facts: Sequence[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="faint", no_wrap=True)
    table.add_column()
    for label, fact in facts:
        table.add_row(label, Text(fact))
    return table


def _line(run: Analysis) -> Text:
    column = run.loss
    course = "no loss"
    if column is not None and len(column):
        course = f"loss {number(column.values[0])} to {number(column.values[-1])}"
    return Text(f"{tail(clean(run.name), 60)}: {count(run.records, 'record')}, {course}")
