"""The HTML page of an analysis of a run folder, or of the runs in another trainer's log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from stabwatch.alerts.incidents import alert_spans, worst_of
from stabwatch.cli.render.analysis import (
    limitation_lines,
    log_facts,
    place_of,
    run_facts,
    shown_incidents,
    since_words,
)
from stabwatch.cli.render.html import markup
from stabwatch.cli.render.html.drawing import Bar, Mark, chart, heat_map, timeline
from stabwatch.cli.render.text import number

if TYPE_CHECKING:
    from stabwatch.alerts.incidents import Incident
    from stabwatch.analysis import Analysis

MOST_ROWS, MOST_MAPS, MOST_LAYERS, MOST_RUNS, MOST_BARS, MOST_CURVES = 60, 6, 64, 20, 24, 3


def page(runs: Sequence[Analysis]) -> str:
    """The runs of one path; those with problems first."""
    folder = len(runs) == 1 and runs[0].is_run_folder
    name = runs[0].name if folder else runs[0].path.name if runs else "no run"
    return markup.page(f"stabwatch: {name}", _body(name, runs))


def _body(name: str, runs: Sequence[Analysis]) -> Iterator[str]:
    called = runs[0].run.meta.name if runs and runs[0].is_run_folder else ""
    yield f"<h1>stabwatch report: {markup.safe(f'{called} · {name}' if called else name)}</h1>"
    if not runs:
        yield markup.verdict("No training record was found.", "warning")
    ordered = sorted(runs, key=lambda run: run.calm)
    for run in ordered[:MOST_RUNS]:
        if len(ordered) > 1:
            yield f'<h2 class="run">Run {markup.safe(run.name)}</h2>'
        yield from _run(run)
    if len(ordered) > MOST_RUNS:
        yield f"<p>and {len(ordered) - MOST_RUNS:,} more runs</p>"
    if runs and not runs[0].is_run_folder:
        yield markup.section("The log", markup.table(("", ""), log_facts(runs[0])))


def _run(run: Analysis) -> Iterator[str]:
    yield markup.verdict(run.diagnosis.verdict, worst_of(run.incidents))
    yield markup.section("Causes", markup.causes([(c, since_words(run, c)) for c in run.diagnosis.causes]))
    shown = shown_incidents(run, MOST_ROWS)
    bars = [bar for incident in shown for bar in _bars(incident)]
    yield markup.section("Time-line", timeline(bars[:MOST_BARS], run.first_step or 0, run.last_step or 0))
    marks: list[Mark] = [(i.first_step, i.severity, f"{_label(i)}: {i.text}") for i in shown]
    yield from _curves(run, marks)
    yield markup.section("By layer", _maps(run))
    yield markup.section("What happened, in order", markup.events((run.unit, *HEADINGS), [_row(i) for i in shown]))
    yield markup.section("What this log does not show", markup.bullets(limitation_lines(run)))
    if run.is_run_folder:
        yield markup.section("Series", _series(run))
        yield markup.section("The run", markup.table(("", ""), run_facts(run)))
    else:
        yield markup.section("Configuration", markup.table(("", ""), list(run.curves.config.items())))


HEADINGS = ("until", "condition", "alert", "what happened")


def _row(incident: Incident) -> tuple[str, tuple[object, ...]]:
    until = "end" if incident.last_step is None else f"{incident.last_step:,}"
    alert = "none" if incident.live_step is None else f"{incident.live_step:,}"
    where = place_of(incident)
    text = f"{where}: {incident.text}" if where else incident.text
    return incident.severity, (f"{incident.first_step:,}", until, incident.condition, alert, text)


def _bars(incident: Incident) -> list[Bar]:
    """One bar per layer if there are several, by onset."""
    if len(incident.layers) < 2:
        return [(_label(incident), incident.severity, incident.first_step, incident.last_step)]
    spans = alert_spans(incident.alerts)
    return [(f"{s.rule} {s.layer}", s.severity, s.onset, s.until) for s in spans]


def _label(incident: Incident) -> str:
    return f"{incident.condition} {incident.layers[0] if incident.layers else ''}".strip()


def _curves(run: Analysis, marks: Sequence[Mark]) -> Iterator[str]:
    columns = [c for c in run.curves.columns if c is run.loss or c.role == "grad_norm"]
    columns.sort(key=lambda c: c is not run.loss)
    for column in columns[:MOST_CURVES]:
        yield markup.section(column.name.replace("_", " "), chart((column.steps, column.values), marks))


def _maps(run: Analysis) -> str:
    """Heat maps of signals with several layers; those of incidents come first."""
    layers: dict[str, list[str]] = {}
    for key in run.run.keys:
        if key.layer:
            layers.setdefault(key.signal, []).append(key.layer)
    maps: list[str] = []
    for signal in dict.fromkeys([*(i.signal for i in run.incidents), *layers]):
        if len(layers.get(signal, ())) < 2 or len(maps) == MOST_MAPS or not run.is_run_folder:
            continue
        names = layers[signal]
        drawn = heat_map([(name, run.run.series(signal, name)) for name in names[:MOST_LAYERS]])
        more = f", the first {MOST_LAYERS} of {len(names)} layers" if len(names) > MOST_LAYERS else ""
        if drawn:
            maps.append(f"<h3>{markup.safe(signal.replace('_', ' ') + more)}</h3>{drawn}")
    return "".join(maps)


def _series(run: Analysis) -> str:
    rows = [
        (s.signal, s.layer, s.points, number(s.first), number(s.last), number(s.least), number(s.largest))
        for s in run.series
    ]
    headings = ("signal", "layer", "points", "first", "last", "least", "largest")
    return f"<details><summary>{len(rows):,} series</summary>{markup.table(headings, rows)}</details>"
