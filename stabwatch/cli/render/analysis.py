"""An Analysis for people: the verdict first, then why, since when, where, what fired, what was not seen."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from stabwatch.alerts.incidents import AlertSpan, alert_spans, rank
from stabwatch.alerts.rule import SEVERITIES
from stabwatch.cli.render.layout import cause_section, new_table, section
from stabwatch.cli.render.plot import Chart, Line
from stabwatch.cli.render.text import clean, count, duration, listed, mapping, missing, number, tail
from stabwatch.runlog import Run

if TYPE_CHECKING:
    from stabwatch.analysis import Analysis

MOST_ROWS = 12
"""Rows of a table; the rest is counted, and stands in `--json`."""
LINE_STYLES = ("red", "yellow", "cyan", "green", "blue")
"""Styles of the layers in a chart, in forward order."""
BAR = 24
"""Columns of the time-line where there is room."""
WIDE = 100
"""Columns from which there is room."""


class Report:
    """Renders the analysis of a run, with charts of its series."""

    def __init__(self, analysis: Analysis, run: Run) -> None:
        self.analysis = analysis
        self.run = run
        self.stretches = alert_spans(analysis.alerts)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._verdict()
        for place, found in enumerate(self.analysis.diagnosis.causes, 1):
            yield from cause_section(place, found)
        if self.stretches:
            yield from section("What left its normal range, in order", self._onsets(options))
            yield from section("Alerts", self._alerts(options))
        for title, chart in self._charts():
            yield from section(title, chart)
        yield from section("Not measured", *self._unseen())
        yield from section("The run", self._facts())

    def _verdict(self) -> Text:
        worst = min((s.severity for s in self.stretches), key=rank, default="calm")
        return Text(clean(self.analysis.diagnosis.verdict), style=worst)

    def _onsets(self, options: ConsoleOptions) -> Table:
        """One row per signal: where it began, where it went from there, and a bar over the run."""
        signals: dict[str, list[AlertSpan]] = {}
        for stretch in self.stretches:
            signals.setdefault(stretch.signal, []).append(stretch)
        table = new_table("step", "signal", "first in", "then in", "time-line")
        table.columns[0].justify = "right"
        wide = options.max_width >= WIDE
        extent = self._extent()
        for signal, mine in list(signals.items())[:MOST_ROWS]:
            layers = list(dict.fromkeys(clean(s.layer) for s in mine if s.layer))
            table.add_row(
                str(mine[0].onset),
                signal or "the process",
                tail(layers[0], 24 if wide else 14) if layers else "",
                _others(layers[1:], 2 if wide else 0),
                timeline(mine[0], *extent, BAR if wide else BAR // 2, options.ascii_only),
            )
        return table

    def _extent(self) -> tuple[int, int]:
        steps = self.run.steps
        return (int(steps.min()), int(max(steps.max(), self.analysis.last_step or 0))) if len(steps) else (0, 0)

    def _alerts(self, options: ConsoleOptions) -> Table:
        wide = options.max_width >= WIDE
        severities = [s for s in SEVERITIES[::-1] if any(s in stretch.fired for stretch in self.stretches)]
        headings = ("alert", "layer", "onset", *severities, "until", "value", "limit")
        table = new_table(*headings[: None if wide else -1], gap=2 if wide else 1)
        for column in table.columns[2:]:
            column.justify = "right"
        for stretch in self.stretches[:MOST_ROWS]:
            cells: tuple[str | Text, ...] = (
                Text(stretch.rule, style=stretch.severity),
                tail(clean(stretch.layer), 28 if wide else 14),
                str(stretch.onset),
                *(str(stretch.fired.get(severity, "")) for severity in severities),
                "end" if stretch.until is None else str(stretch.until),
                number(stretch.worst.value),
                number(stretch.worst.threshold),
            )
            table.add_row(*cells[: len(table.columns)])
        if len(self.stretches) > MOST_ROWS:
            table.add_row(Text(f"and {len(self.stretches) - MOST_ROWS:,} more", style="faint"))
        return table

    def _charts(self) -> Iterator[tuple[Text, Chart]]:
        """The loss, and by layer the signal of the first cause."""
        offender = self._offender()
        onset = None if offender is None else offender.onset
        steps, values = self.run.series("loss")
        if len(steps):
            yield Text("loss", style="title"), Chart([Line(steps, values)], mark=onset)
        signal = "loss" if offender is None else offender.signal
        if signal == "loss" or signal not in {key.signal for key in self.run.keys}:
            return
        lines, title = [], Text().append(signal, style="title")
        for layer, style in zip(self._worst_layers(signal), LINE_STYLES, strict=False):
            lines.append(Line(*self.run.series(signal, layer), style))
            title.append(f"  {clean(layer)}", style=style)
        yield title, Chart(lines[::-1], mark=onset, log=True)  # the first layer lies on top

    def _offender(self) -> AlertSpan | None:
        """The stretch that the first cause is about; the first one, if that cause is about none."""
        for cause in self.analysis.diagnosis.causes:
            for stretch in self.stretches:
                if stretch.rule == cause.name:
                    return stretch
        return self.stretches[0] if self.stretches else None

    def _worst_layers(self, signal: str) -> list[str]:
        """At most as many layers as there are styles, those with an early onset first chosen, in forward order."""
        layers = [key.layer for key in self.run.keys if key.signal == signal]
        alarmed = [s.layer for s in self.stretches if s.signal == signal]
        kept = list(dict.fromkeys([*alarmed, *layers]))[: len(LINE_STYLES)]
        return [layer for layer in layers if layer in kept]

    def _unseen(self) -> Iterator[Text]:
        reasons = missing(self.analysis.coverage)
        for (tap, reason), sites in reasons.items():
            yield Text(f"{tap} at {listed(sites)}: {reason}")
        if not reasons:
            yield Text("nothing that should have been", style="faint")

    def _damage(self) -> str:
        """What of the log could not be read, if anything."""
        a = self.analysis
        over = ((a.damaged_records, "unreadable record"), (a.bad_event_lines, "unreadable event"))
        parts = [f"{count(n, what)} stepped over" for n, what in over if n]
        if a.torn_bytes:
            parts.append(f"{count(a.torn_bytes, 'byte')} at the end of a file that are no whole record")
        return ", ".join(parts)

    def _facts(self) -> Table:
        meta = self.run.meta
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(style="faint", no_wrap=True)
        table.add_column()
        model = mapping(meta.model)
        name = clean(model.get("name") or "?")
        if isinstance(model.get("parameters"), int):
            name += f", {model['parameters']:,} parameters"
        versions = ", ".join(f"{clean(k)} {clean(v)}" for k, v in mapping(meta.versions).items())
        begun = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(meta.created))
        first, last = self._extent()
        rows = {
            "run": clean(meta.run),
            "model": name,
            "steps": f"{self.analysis.steps:,} recorded, {first:,} to {last:,}, {duration(self.analysis.duration)}",
            "began": f"{begun} on {clean(meta.host)}" + (f", {meta.world_size} ranks" if meta.world_size > 1 else ""),
            "ended": clean(self.analysis.ended or "not yet, or nothing was there to write it"),
            "versions": versions or "?",
            "errors": count(len(self.analysis.errors), "probe error") if self.analysis.errors else "none in stabwatch",
            "log": clean(self.run.path),
        }
        if damage := self._damage():
            rows["damage"] = damage
        for label, fact in rows.items():
            table.add_row(label, Text(fact))
        return table


def timeline(stretch: AlertSpan, first: int, last: int, width: int = BAR, ascii_only: bool = False) -> Text:
    """A bar over the run: thin while normal, medium from the onset on, thick while the alert fires."""
    thin, medium, thick = "-=#" if ascii_only else "─━█"
    changes = [(first, thin, "faint"), (stretch.onset, medium, "onset")]
    changes += [(step, thick, severity) for severity, step in sorted(stretch.fired.items(), key=lambda item: item[1])]
    if stretch.until is not None:
        changes.append((stretch.until, thin, "faint"))
    scale = width / max(last - first, 1)
    at = [min(max(round((step - first) * scale), 0), width - 1) for step, *_ in changes] + [width]
    text = Text(no_wrap=True)
    for place, (_, glyph, style) in enumerate(changes):
        text.append(glyph * (at[place + 1] - at[place]), style=style)
    return text


def _others(layers: Sequence[str], named: int) -> str:
    """'blocks.1, blocks.2 and 1 more'."""
    if len(layers) <= named or not named:
        return ", ".join(layers) if named else f"{len(layers)} more" if layers else ""
    return f"{', '.join(layers[:named])} and {len(layers) - named} more"
