"""The data of the live page, ready for JSON. Help and units come from the catalogue, the order of layers from the "
"run log."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from stabwatch.agent.history import History
from stabwatch.alerts import Alert, Diagnosis
from stabwatch.alerts.templates import format_guard, group_names
from stabwatch.exporters.declared import declared
from stabwatch.exporters.latest import Latest
from stabwatch.runlog import Event, Meta, SeriesKey, plain
from stabwatch.signals import CATALOGUE

PageHead = dict[str, Any]

MOST_NAMES = 8
MARKS = 200
"""Maximum number of alert onsets in the charts."""


@dataclass(frozen=True)
class Chart:
    """One chart. lines: candidates for the line; a layer uses the first that it has.

    low, exact: the lower bound, and exact values at some steps.
    """

    title: str
    lines: tuple[str, ...]
    low: str = ""
    exact: str = ""

    @property
    def signals(self) -> tuple[str, ...]:
        """All signals of the chart."""
        return tuple(s for s in (*self.lines, self.low, self.exact) if s)


_UPPER, _EXACT = "attention_logit_upper", "attention_logit_max"

CHARTS = (
    Chart("Loss", ("loss",)),
    Chart("Gradient norm", ("gradient_norm_before_clip", "gradient_norm")),
    Chart("Attention logit", (_UPPER, _EXACT), "attention_logit_lower", _EXACT),
    Chart("Output RMS", ("output_rms",)),
    Chart("Activation maximum", ("activation_abs_max",)),
    Chart("Update-to-weight ratio", ("update_to_weight_ratio",)),
    Chart("Output logit logsumexp", ("output_logit_logsumexp",)),
    Chart("Attention entropy", ("attention_entropy",)),
    Chart("Mean-mode energy ratio", ("mean_mode_energy_ratio",)),
    Chart("Token similarity", ("token_similarity",)),
    Chart("Geometric stability", ("geometry_stability",)),
    Chart("Largest singular value", ("singular_value_max",)),
    Chart("Step / Taylor radius", ("step_to_radius_ratio",)),
)  # fmt: skip
CHARTED = frozenset(signal for chart in CHARTS for signal in chart.signals)

COLUMNS = (
    ("Attention logit", (_UPPER, _EXACT)),
    ("Output RMS", ("output_rms",)),
    ("Activation max", ("activation_abs_max",)),
    ("Gradient norm", ("layer_gradient_norm",)),
    ("Update-to-weight ratio", ("update_to_weight_ratio",)),
)
HEADS = {_UPPER: "attention_logit_upper_head", _EXACT: "attention_logit_head"}
NONFINITE = tuple(s.name for s in CATALOGUE if s.scope == "layer" and s.name.endswith("nonfinite_total"))
PACE = ("step_seconds", "overhead_ratio", "learning_rate", "loss")


def page_head(
    *,
    meta: Meta,
    state: str,
    ended: Event | None,
    readings: Latest,
    active: Sequence[Alert],
    transitions: Sequence[Alert],
    diagnosis: Diagnosis,
    notices: Sequence[Event],
) -> PageHead:
    """Everything on the page except the points of the charts."""
    last = {key: _number(v) for key, v in zip(readings.keys, readings.last.tolist(), strict=True)}
    return {
        "run": {
            "name": meta.run,
            "called": meta.name,
            "host": meta.host,
            "model": str(meta.model.get("name", "")),
            "parameters": meta.model.get("parameters"),
            "created": meta.created,
            "state": state,
            "end": _end(ended),
            "ended": _ended_at(ended, readings),
        },
        "progress": {
            "step": readings.step,
            "time": readings.time,
            **{name: last.get(SeriesKey(name)) for name in PACE},
            "loss_broken": SeriesKey("loss") in last and last[SeriesKey("loss")] is None,
        },
        "diagnosis": plain(diagnosis.to_dict()),
        "layers": readings.layers,
        "signals": sorted({key.signal for key in readings.keys if key.layer}),
        "alerts": [_alert(a) for a in active],
        "marks": [_alert(a) for a in transitions if a.state == "firing"][-MARKS:],
        "table": _table(readings, last),
        "notices": [*_notices(notices), *_left_out(readings)],
    }


def charts(history: History, order: Sequence[str]) -> list[dict[str, Any]]:
    """The charts that have data. `column` is the index in the points of the history."""
    columns = {key: i for i, key in enumerate(history.keys)}
    layers = ["", *order]
    out = []
    for chart in CHARTS:
        lines = []
        for layer in layers:
            signal = next((s for s in chart.lines if SeriesKey(s, layer) in columns), None)
            if signal is None:
                continue
            line: dict[str, Any] = {"layer": layer, "column": columns[SeriesKey(signal, layer)]}
            for role, other in (("low", chart.low), ("exact", chart.exact)):
                if other != signal and SeriesKey(other, layer) in columns:
                    line[role] = columns[SeriesKey(other, layer)]
            lines.append({**line, "signal": signal})
        if lines:
            out.append(_chart(chart.title, lines, chart.signals, lines[0]["signal"]))
    return out


def chart_of(signal: str, history: History, order: Sequence[str]) -> dict[str, Any]:
    """A chart of one signal of a history, layers in forward order. Without lines where it has no value yet."""
    place = {layer: i for i, layer in enumerate(["", *order])}
    mine = [(key.layer, i) for i, key in enumerate(history.keys) if key.signal == signal]
    mine.sort(key=lambda line: place.get(line[0], len(place)))
    lines = [{"layer": layer, "column": i, "signal": signal} for layer, i in mine]
    return _chart(signal.replace("_", " "), lines, (signal,), signal)


def _chart(title: str, lines: list[dict[str, Any]], signals: Sequence[str], of: str) -> dict[str, Any]:
    """of: the signal whose declaration the chart shows."""
    known = declared(of)
    unit = CATALOGUE[of].unit if of in CATALOGUE else "1"
    facts = {"help": known.help, "unit": unit, "worst": known.worst, "signals": list(signals)}
    return {"title": title, **facts, "lines": lines}


def _table(readings: Latest, last: dict[SeriesKey, float | None]) -> dict[str, Any]:
    column = {key: i for i, key in enumerate(readings.keys)}
    rows = []
    for layer in readings.layers:
        cells: list[dict[str, Any] | None] = []
        for _, signals in COLUMNS:
            key = next((k for s in signals if (k := SeriesKey(s, layer)) in column), None)
            cells.append(None if key is None else _cell(readings, last, column[key], key))
        nonfinite = sum(readings.totals[column[k]] for s in NONFINITE if (k := SeriesKey(s, layer)) in column)
        if any(cells) or nonfinite:
            rows.append({"layer": layer, "cells": cells, "nonfinite": int(nonfinite)})
    return {"columns": [title for title, _ in COLUMNS], "rows": rows}


def _cell(readings: Latest, last: dict[SeriesKey, float | None], i: int, key: SeriesKey) -> dict[str, Any] | None:
    worst = _number(readings.worst[i])
    if worst is None and not readings.nonfinite[i]:
        return None
    head = last.get(SeriesKey(HEADS.get(key.signal, ""), key.layer))
    return {
        "last": last[key],
        "at": int(readings.last_step[i]),
        "worst": worst,
        "step": int(readings.worst_step[i]),
        "head": None if head is None else int(head),
    }


def _alert(a: Alert) -> dict[str, Any]:
    return {
        "rule": a.rule, "severity": a.severity, "signal": a.signal, "layer": a.layer, "step": a.step,
        "onset": a.onset, "time": a.time, "summary": a.summary, "description": a.description,
    }  # fmt: skip


def _end(event: Event | None) -> str:
    if event is None:
        return ""
    return str(event.data.get("error") or event.data.get("detail") or "")


def _ended_at(event: Event | None, readings: Latest) -> float | None:
    """When the run ended, in seconds since the epoch. An agent that finds a process dead knows only its last record."""
    if event is None:
        return None
    return readings.time if event.data.get("by") == "agent" else event.time


def _left_out(readings: Latest) -> Iterable[dict[str, str]]:
    names = list(readings.cap.dropped_signals)
    if names:
        some = ", ".join(names[:MOST_NAMES]) + (
            f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        )
        why = f"{readings.cap.dropped} series are above the limit of {readings.cap.limit}; the run log has them"
        yield {"what": f"Not on /metrics and not in the table by layer: {some}", "why": why}


def _notices(events: Iterable[Event]) -> Iterable[dict[str, str]]:
    for event in events:
        if event.kind == "guard":
            yield {"what": f"Step {event.step}: a guard intervened", "why": format_guard(event.data)}
            continue
        if event.kind == "snapshot":
            did, why = event.data.get("did"), event.data.get("why", "")
            yield {"what": f"Snapshots with other ranks: {did}", "why": str(why)}
            continue
        if event.kind == "change":
            kind = "the model changed" if event.data.get("seen") else "announced change"
            yield {"what": f"Step {event.step}: {kind}", "why": str(event.data.get("what", ""))}
            continue
        if event.kind == "error":
            yield {"what": f"Probe {event.data.get('probe')}", "why": str(event.data.get("message", ""))}
            continue
        if event.kind == "sink":
            yield {"what": f"Sink {event.data.get('sink')} failed", "why": str(event.data.get("message", ""))}
            continue
        missing = event.data.get("missing")
        reasons: dict[tuple[str, str], list[str]] = {}
        for entry in missing if isinstance(missing, list) else ():
            if isinstance(entry, dict):
                reasons.setdefault((str(entry.get("tap")), str(entry.get("reason"))), []).append(str(entry.get("site")))
        for (tap, reason), sites in reasons.items():
            names = group_names([s for s in sites if s])
            where = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
            yield {"what": f"Not measured: {tap}" + (f" at {where}" if where else ""), "why": reason}


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
