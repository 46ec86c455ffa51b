"""Checks of `stabwatch doctor RUN`: records, measured and missing signals with reasons, errors, overhead, end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from time import time

import numpy as np

from stabwatch.alerts.held_up import held_up_in
from stabwatch.analysis.analyze import silent_verdict
from stabwatch.cli.doctor.environment import Check
from stabwatch.cli.render.text import clean, count, duration, listed, mapping, missing, notes, number, size
from stabwatch.runlog import Event, Run, SeriesKey, read_run
from stabwatch.runlog.process import end_of, killed_end
from stabwatch.runlog.schema import GOOD_ENDS
from stabwatch.signals.declaration import TAPS

BUDGET = 0.01
"""Default overhead budget, as a share of step time, for a run whose configuration has none."""


def check_run(path: Path) -> list[Check]:
    """Findings on one run folder. Raises RunLogError."""
    run = read_run(path)
    parts = (_records, _damage, _taps, _missing, _errors, _counters, _overhead, _end)
    return [check for part in parts for check in part(run)]


def _records(run: Run) -> Iterator[Check]:
    disk = sum(file.stat().st_size for file in run.path.iterdir() if file.is_file())
    if not len(run.steps):
        coverage = next((e for e in reversed(run.events) if e.kind == "coverage"), None)
        why = silent_verdict(coverage, _ended(run))
        yield Check("records", "bad", "none", why)
        return
    yield Check(
        "records",
        "ok",
        f"{count(len(run.steps), 'record')} over steps {run.steps.min():,} to {run.steps.max():,}, "
        f"{duration(float(run.times.max() - run.times.min()))}, {size(disk)}",
        _sparse(run),
    )


def _sparse(run: Run) -> str:
    """A remedy if many steps were not recorded; empty if nearly all were."""
    every = (run.steps.max() - run.steps.min()) / max(len(run.steps) - 1, 1)
    if every < 1.5:
        return ""
    return (
        f"one step in {every:.3g} was recorded, to stay within the overhead budget; for more, set a higher "
        "`overhead_budget`, or `every_step=True`"
    )


def _damage(run: Run) -> Iterator[Check]:
    """Parts of the log that could not be read."""
    running = not any(event.kind == "end" for event in run.events)
    if run.damaged_records:
        yield Check("damage", "bad", f"{count(run.damaged_records, 'unreadable record')}, skipped")
    for problem in run.unreadable:
        yield Check("damage", "bad", f"a part of the log is left out: {problem}")
    if run.bad_event_lines:
        yield Check("damage", "bad", f"{count(run.bad_event_lines, 'unreadable line')} in events.jsonl, skipped")
    if run.torn_bytes and not running:
        yield Check(
            "damage", "note", f"incomplete record of {size(run.torn_bytes)} at the end, from a crash or a full disk"
        )


def _fired(run: Run) -> dict[SeriesKey, bool]:
    """Whether each series was measured at least once."""
    fired: dict[SeriesKey, bool] = {}
    for block in run.blocks:
        for key, column in zip(block.layout.keys, block.measured.T, strict=True):
            fired[key] = fired.get(key, False) or bool(column.any())
    return fired


def _taps(run: Run) -> Iterator[Check]:
    from stabwatch.signals import CATALOGUE

    series = {key: fired for key, fired in _fired(run).items() if key.signal in CATALOGUE}
    for tap in TAPS:
        mine = {key: fired for key, fired in series.items() if CATALOGUE[key.signal].tap == tap}
        sites = dict.fromkeys(key.layer for key in mine if key.layer)
        silent = [key for key, fired in mine.items() if not fired]
        if not mine:
            if tap not in ("host", "logged", "router") and run.blocks:
                yield Check(
                    f"tap {tap}",
                    "note",
                    "no signals of this kind in this run",
                )
            continue
        where = f"{count(len(sites), 'layer')}, " if sites else ""
        found = f"{where}{count(len(mine), 'signal') if not sites else f'{len(mine):,} series'}"
        if silent:
            yield Check(f"tap {tap}", "note", f"{found}; never measured: {listed([clean(key) for key in silent])}")
        else:
            yield Check(f"tap {tap}", "ok", f"{found}, all measured")


def _missing(run: Run) -> Iterator[Check]:
    """Signals that should have been measured and were not, by reason, from the last coverage event."""
    reports = [event for event in run.events if event.kind == "coverage"]
    if not reports:
        yield Check("coverage", "note", "no coverage report in this log: the run has not reached its first report")
        return
    for tap, note in notes(reports[-1].data):
        yield Check(tap, "note", note)
    reasons = missing(reports[-1].data)
    if not reasons:
        yield Check("coverage", "ok", "everything that should have been measured was measured")
    for (tap, reason), sites in reasons.items():
        yield Check(f"no {tap}", "note", f"{listed(sites)}: {reason}")


def _errors(run: Run) -> Iterator[Check]:
    errors = [event for event in run.events if event.kind == "error"]
    by_probe = Counter(str(event.data.get("probe")) for event in errors)
    for probe, times in by_probe.items():
        message = next(e.data.get("message", "") for e in errors if str(e.data.get("probe")) == probe)
        yield Check(
            clean(f"probe {probe}"),
            "bad",
            f"{clean(message)} ({count(times, 'report')})",
            "training is not affected; the traceback is in events.jsonl",
        )


def _counters(run: Run) -> Iterator[Check]:
    for signal, what in (
        ("probe_errors_total", "exceptions caught inside stabwatch"),
        ("records_dropped_total", "records lost before they were written"),
    ):
        total = float(np.nansum(run.series(signal)[1]))
        if total > 0:
            yield Check(signal.removesuffix("_total").replace("_", " "), "bad", f"{total:,.0f} {what}")


def _overhead(run: Run) -> Iterator[Check]:
    values = run.series("overhead_ratio")[1]
    budget = mapping(run.meta.config).get("overhead_budget", BUDGET)
    if not len(values) or not isinstance(budget, int | float):
        yield Check("overhead", "note", "not measured in this run")
        return
    found = f"{number(100 * float(np.median(values)))} % of step time (median), budget {number(100 * budget)} %"
    if np.median(values) > budget:
        yield Check(
            "overhead", "note", found, "the steps are short for this budget: watch fewer layers, or raise the budget"
        )
    else:
        yield Check("overhead", "ok", found)


def _ended(run: Run) -> Event | None:
    last = (int(run.steps[-1]), float(run.times[-1])) if len(run.steps) else (None, None)
    return end_of(run.events) or killed_end(run.meta, run.events, *last)


def _end(run: Run) -> Iterator[Check]:
    held = held_up_in(run.path, run.events, time(), "doctor")
    held = held or next((event for event in reversed(run.events) if event.kind == "held_up"), None)
    if held is not None:
        yield Check("ranks", "bad", clean(held.data.get("what") or ""), "`stabwatch analyze` says what to do")
    end = _ended(run)
    if end is None:
        yield Check("end", "note", "none yet: the training process is alive, or on another host")
        return
    data = end.data
    reason, said = clean(data.get("reason")), clean(data.get("error") or data.get("detail") or "")
    yield Check("end", "ok" if reason in GOOD_ENDS else "bad", f"{reason}{f': {said}' if said else ''}")
