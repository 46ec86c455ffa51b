"""The page of a run folder, and that of another trainer's log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from stabwatch.alerts.incidents import alert_spans, rank
from stabwatch.alerts.rule import SEVERITIES
from stabwatch.cli.render.html import markup
from stabwatch.cli.render.html.drawing import Bar, Mark, chart, heat_map, timeline
from stabwatch.cli.render.text import listed, mapping, missing, number

if TYPE_CHECKING:
    from stabwatch.analysis import Analysis
    from stabwatch.analysis.verdict import Examination, LogReport
    from stabwatch.runlog import Run

MOST_ROWS, MOST_MAPS, MOST_LAYERS, MOST_RUNS, MOST_BARS = 60, 6, 64, 20, 24


def run_page(analysis: Analysis, run: Run) -> str:
    """A run folder."""
    return markup.page(f"stabwatch: {analysis.meta.run}", _run(analysis, run))


def _run(analysis: Analysis, run: Run) -> Iterator[str]:
    fired = alert_spans(analysis.alerts)
    worst = min((s.severity for s in fired), key=rank, default="calm")
    yield f"<h1>stabwatch report: {markup.safe(analysis.meta.run)}</h1>"
    yield markup.verdict(analysis.diagnosis.verdict, worst)
    yield markup.section("Causes", markup.causes(analysis.diagnosis.causes))
    marks: list[Mark] = [(s.onset, s.severity, f"{s.rule} {s.layer}") for s in fired[:MOST_ROWS]]
    bars: list[Bar] = [(f"{s.rule} {s.layer}".strip(), s.severity, s.onset, s.until) for s in fired[:MOST_BARS]]
    extent = analysis.first_step or 0, analysis.last_step or 0
    yield markup.section("What left its normal range, in order of onset", timeline(bars, *extent))
    for title, signal in (("Loss", "loss"), ("Gradient norm", "gradient_norm_before_clip")):
        yield markup.section(title, chart(run.series(signal), marks))
    yield markup.section("By layer", _maps(run, [s.signal for s in fired]))
    rows = [
        (s.onset, s.rule, s.layer, s.severity, "end" if s.until is None else s.until,
         number(s.worst.value), number(s.worst.threshold))
        for s in fired[:MOST_ROWS]
    ]  # fmt: skip
    yield markup.section(
        "Alerts, by onset", markup.table(("onset", "alert", "layer", "severity", "until", "value", "limit"), rows)
    )
    unseen = [f"{tap} at {listed(sites)}: {why}" for (tap, why), sites in missing(analysis.coverage).items()]
    yield markup.section("Not measured", markup.bullets(unseen or ["nothing that should have been"]))
    series = [
        (s.signal, s.layer, s.points, number(s.first), number(s.last), number(s.least), number(s.largest))
        for s in analysis.series
    ]
    headings = ("signal", "layer", "points", "first", "last", "least", "largest")
    summary = f"<details><summary>{len(series):,} series</summary>{markup.table(headings, series)}</details>"
    yield markup.section("Series", summary)
    yield markup.section("The run", markup.table(("", ""), _facts(analysis)))


def _maps(run: Run, alarmed: list[str]) -> str:
    """Heat maps of the signals that fired, then of the others, which have several layers."""
    layers: dict[str, list[str]] = {}
    for key in run.keys:
        if key.layer:
            layers.setdefault(key.signal, []).append(key.layer)
    maps: list[str] = []
    for signal in dict.fromkeys([*alarmed, *layers]):
        if len(layers.get(signal, ())) < 2 or len(maps) == MOST_MAPS:
            continue
        names = layers[signal]
        drawn = heat_map([(name, run.series(signal, name)) for name in names[:MOST_LAYERS]])
        more = f", the first {MOST_LAYERS} of {len(names)} layers" if len(names) > MOST_LAYERS else ""
        if drawn:
            maps.append(f"<h3>{markup.safe(signal + more)}</h3>{drawn}")
    return "".join(maps)


def _facts(analysis: Analysis) -> list[tuple[str, object]]:
    meta = analysis.meta
    facts: list[tuple[str, object]] = [("steps recorded", f"{analysis.steps:,}"), ("host", meta.host)]
    facts += [(f"model {name}", value) for name, value in mapping(meta.model).items() if isinstance(value, str | int)]
    facts += list(mapping(meta.versions).items())
    facts += [
        ("ended", analysis.ended or "not yet, or nothing was there to write it"),
        ("probe errors", len(analysis.errors)),
        ("unreadable records, events, bytes at the end",
         f"{analysis.damaged_records}, {analysis.bad_event_lines}, {analysis.torn_bytes}"),
        ("log", analysis.path),
    ]  # fmt: skip
    return facts


def log_page(report: LogReport) -> str:
    """Another trainer's log."""
    return markup.page(f"stabwatch: {report.path.name}", _log(report))


def _log(report: LogReport) -> Iterator[str]:
    yield f"<h1>stabwatch report: {markup.safe(report.path.name)}</h1>"
    ordered = sorted(report.runs, key=lambda run: run.calm)
    for run in ordered[:MOST_RUNS]:
        if len(ordered) > 1:
            yield f"<h2>Run {markup.safe(run.run.name)}</h2>"
        yield from _examined(run)
    if len(ordered) > MOST_RUNS:
        yield f"<p>and {len(ordered) - MOST_RUNS:,} more runs</p>"
    facts = [("log", report.path), ("format", report.format), *(("note", note) for note in report.notes)]
    yield markup.section("The log", markup.table(("", ""), facts))


def _examined(run: Examination) -> Iterator[str]:
    worst = min((f.severity for f in run.findings if f.trouble), key=SEVERITIES.index, default="calm")
    yield markup.verdict(run.diagnosis.verdict, worst)
    yield markup.section("Causes", markup.causes(run.diagnosis.causes))
    shown = sorted(run.findings, key=lambda f: SEVERITIES.index(f.severity))[:MOST_ROWS]
    marks: list[Mark] = [(f.step, f.severity, f.text) for f in shown]
    curves = [c for c in run.run.columns if c.name == run.loss or c.role == "grad_norm"]
    curves.sort(key=lambda c: c.name != run.loss)
    events = [f for f in run.findings if f in shown][:MOST_BARS]
    bars: list[Bar] = [(f.kind.replace("_", " "), f.severity, f.step, f.end_step) for f in events]
    yield markup.section("Time-line", timeline(bars, run.first_step or 0, run.last_step or 0))
    for column in curves[:3]:
        yield markup.section(column.name, chart((column.steps, column.values), marks))
    rows = [
        (f.step, "end" if f.end_step is None else f.end_step, f.kind.replace("_", " "), f.severity, f.text)
        for f in run.findings
        if f in shown
    ]
    yield markup.section("What happened, in order", markup.table(("step", "until", "what", "severity", ""), rows))
    yield markup.section("What this log does not show", markup.bullets(run.limitations))
    yield markup.section("Configuration", markup.table(("", ""), list(run.run.config.items())))
