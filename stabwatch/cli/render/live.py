"""Renders `stabwatch top` in a given number of lines. Long names are shortened at their front."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from stabwatch.alerts.incidents import rank
from stabwatch.alerts.rule import SEVERITIES
from stabwatch.cli.render.monitor import LayerRow, LiveView
from stabwatch.cli.render.plot import ASCII_BLOCKS, BLOCKS, sparkline
from stabwatch.cli.render.text import clean, count, duration, mapping, number, tail
from stabwatch.runlog import SeriesKey
from stabwatch.runlog.schema import GOOD_ENDS

if TYPE_CHECKING:
    from stabwatch.alerts import Alert

STATES = {**dict.fromkeys(("training", *GOOD_ENDS), "calm"), "stalled": "warning"}
"""Style by state; every other state is critical."""
MOST_ALERTS = 4
STILL = 0.5
"""Relative range below which a layer's trend does not fill its height."""
LAYER_COLUMNS = (
    ("attention", "attn logit", 13),
    ("exact", "exact", 7),
    ("output_rms", "out RMS", 7),
    ("abs_max", "abs max", 7),
    ("gradient", "grad", 7),
    ("update", "upd/w", 7),
)
"""Column, heading, width."""


class TopView:
    """Renders a live view into `height` lines."""

    def __init__(self, view: LiveView, height: int) -> None:
        self.view = view
        self.height = height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        glyphs = ASCII_BLOCKS if options.ascii_only else BLOCKS
        head = [*self._header(width), *self._verdict(console, width), *self._alerts(width), *self._loss(width, glyphs)]
        for line in head[: self.height]:
            line.no_wrap, line.overflow = True, "ellipsis"
            line.truncate(width, overflow="ellipsis")
            yield line
        room = self.height - len(head) - 1
        if room > 0 and self.view.layers:
            yield from self._layers(room, width, glyphs)

    def _header(self, width: int) -> Iterator[Text]:
        v = self.view
        name = Text(clean(v.meta.run), style="title")
        name.append(f"  {clean(mapping(v.meta.model).get('name') or '')}", style="faint")
        state = Text(self._state(), style=STATES.get(v.state, "critical"))
        name.truncate(max(8, width - len(state) - 2), overflow="ellipsis", pad=True)
        yield name + Text("  ") + state
        line = Text(style="faint")
        for item in self._status():
            if len(line) + len(item) <= width:
                line.append(f"{item}  ")
        line.rstrip()
        yield line

    def _status(self) -> Iterator[str]:
        """Items of the second line, the most important first; those that do not fit are left out."""
        v = self.view
        yield f"step {v.step:,}" if v.step is not None else "no record yet"
        if v.values.get("step_seconds", 0) > 0:
            yield f"{number(1 / v.values['step_seconds'])} steps/s"
        if "overhead_ratio" in v.values:
            yield f"overhead {number(100 * v.values['overhead_ratio'])} %"
        for name, label in (("learning_rate", "lr"), ("gradient_norm", "grad norm")):
            if name in v.values:
                yield f"{label} {number(v.values[name])}"
        if v.last is not None:
            yield f"for {duration(v.last - v.meta.created)}"

    def _state(self) -> str:
        v = self.view
        if v.state == "stalled":
            return f"no records for {duration(v.now - (v.last or v.meta.created))}"
        return {"gone": "process has ended"}.get(v.state, clean(v.state))

    def _verdict(self, console: Console, width: int) -> Iterator[Text]:
        worst = min((a.severity for a in self.view.alerts), key=rank, default="calm")
        lines = Text(clean(self.view.verdict), style=worst).wrap(console, width)
        for line in lines[:2]:
            line.rstrip()
            yield line

    def _alerts(self, width: int) -> Iterator[Text]:
        """One line per rule: the first layer, the number of layers, and the present value."""
        rules: dict[str, list[Alert]] = {}
        for alert in sorted(self.view.alerts, key=lambda a: (rank(a.severity), a.onset)):
            rules.setdefault(alert.rule, []).append(alert)
        for alerts in list(rules.values())[:MOST_ALERTS]:
            first = alerts[0]
            line = Text("  ").append(f"{first.severity:<8} ", style=first.severity).append(first.rule, style="title")
            now = self.view.current.get(SeriesKey(first.signal, first.layer))
            pieces = [
                f" {tail(clean(first.layer), 32)}" if first.layer else "",
                f" and {len(alerts) - 1} more" if len(alerts) > 1 else "",
                f", since step {first.onset}",
                f", now {number(now)}" if now is not None else "",
                f" (limit {number(first.threshold)})" if first.threshold is not None else "",
            ]
            for piece in pieces:
                if len(line) + len(piece) <= width:
                    line.append(piece)
            yield line
        if len(rules) > MOST_ALERTS:
            yield Text(f"  and {count(len(rules) - MOST_ALERTS, 'more rule')} firing", style="faint")
        elif not rules and self.view.fired:
            yield Text(f"  {count(self.view.fired, 'alert')} fired earlier, none fires now", style="faint")

    def _loss(self, width: int, glyphs: str) -> Iterator[Text]:
        if self.view.loss:
            label = f"loss {number(self.view.values['loss']):<8} "
            spark = sparkline(self.view.loss, min(width - len(label), len(self.view.loss)), glyphs)
            yield Text(label) + Text(spark, style="line")

    def _layers(self, room: int, width: int, glyphs: str) -> Iterator[Table | Text]:
        rows, hidden = select_rows(self.view.layers, room)
        spark_width = 8 if width < 100 else 24
        name_width = max(10, width - sum(w + 1 for *_, w in LAYER_COLUMNS) - spark_width - 1)
        name_width = min(name_width, max(len(clean(row.name)) for row in rows))
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="faint")
        table.add_column("layer", width=name_width, no_wrap=True)
        for _, heading, column_width in LAYER_COLUMNS:
            table.add_column(heading, width=column_width, justify="right", no_wrap=True)
        table.add_column("trend", width=spark_width, no_wrap=True)
        for row in rows:
            cells = [Text(shown(row, column), style=row.severities.get(column, "none")) for column, *_ in LAYER_COLUMNS]
            worst = min(row.severities.values(), key=rank, default="none")
            name = Text(tail(clean(row.name), name_width), style=worst)
            trend = Text(sparkline(row.trend, spark_width, glyphs, STILL), style=worst if row.severities else "line")
            table.add_row(name, *cells, trend)
        yield table
        if hidden:
            without_alerts = ", without alerts" if _all_shown(self.view, rows) else ""
            yield Text(f"and {count(hidden, 'more layer')}{without_alerts}", style="faint")


def shown(row: LayerRow, column: str) -> str:
    """Text of one table cell; empty if the layer has no such signal."""
    values = row.values
    if column == "attention":
        if "attention_logit_lower" not in values:
            return ""
        return f"{number(values['attention_logit_lower'])}–{number(values.get('attention_logit_upper'))}"
    signal = {
        "exact": "attention_logit_max",
        "output_rms": "output_rms",
        "abs_max": "activation_abs_max",
        "gradient": "layer_gradient_norm",
        "update": "update_to_weight_ratio",
    }[column]
    return number(values[signal]) if signal in values else ""


def _all_shown(view: LiveView, rows: Sequence[LayerRow]) -> bool:
    """Whether every layer with an alert is among the rows."""
    kept = {row.name for row in rows}
    return all(row.name in kept for row in view.layers if row.severities)


def select_rows(layers: Sequence[LayerRow], room: int) -> tuple[list[LayerRow], int]:
    """The rows that fit, in forward order, and the number of the others.

    Layers with an alert come first, then those with the largest attention logits, then the rest in forward order.
    """
    if len(layers) <= room:
        return list(layers), 0

    def order(index: int) -> tuple[int, float, int]:
        row = layers[index]
        worst = min(map(rank, row.severities.values()), default=len(SEVERITIES))
        logit = row.values.get("attention_logit_lower")
        size = -math.inf if logit is None else math.inf if math.isnan(logit) else logit
        return worst, -size, index

    kept = sorted(sorted(range(len(layers)), key=order)[: max(room - 1, 1)])
    return [layers[i] for i in kept], len(layers) - len(kept)
