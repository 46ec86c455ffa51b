"""What `stabwatch doctor RUN` says of a run: which taps fired, what is missing and why, errors, and the cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stabwatch.cli.doctor.environment import Check
from stabwatch.cli.render.text import clean, count, duration, listed, mapping, missing, number, size
from stabwatch.runlog import Run, SeriesKey, read_run
from stabwatch.signals.declaration import TAPS

BUDGET = 0.01
"""Share of step time that stabwatch may take when the run's configuration does not say."""


def check_run(path: Path) -> list[Check]:
    """Findings on one run folder. Raises RunLogError."""
    run = read_run(path)
    parts = (_records, _damage, _taps, _missing, _errors, _counters, _overhead, _end)
    return [check for part in parts for check in part(run)]


def _records(run: Run) -> Iterator[Check]:
    disk = sum(file.stat().st_size for file in run.path.iterdir() if file.is_file())
    if not len(run.steps):
        yield Check("records", "bad", "none", "training has not finished a step yet, or `attach` came after it")
        return
    yield Check(
        "records",
        "ok",
        f"{count(len(run.steps), 'record')} over steps {run.steps.min():,} to {run.steps.max():,}, "
        f"{duration(float(run.times.max() - run.times.min()))}, {size(disk)}",
        _sparse(run),
    )


def _sparse(run: Run) -> str:
    """What to do where many steps were not measured at all; empty where nearly all were."""
    every = (run.steps.max() - run.steps.min()) / max(len(run.steps) - 1, 1)
    if every < 1.5:
        return ""
    return (
        f"one step in {every:.3g} was measured, as the others fit no budget: a higher `overhead_budget`, or "
        "`every_step=True`, sees more"
    )


def _damage(run: Run) -> Iterator[Check]:
    """What of the log could not be read."""
    running = not any(event.kind == "end" for event in run.events)
    if run.damaged_records:
        yield Check("damage", "bad", f"{count(run.damaged_records, 'unreadable record')}, stepped over")
    if run.bad_event_lines:
        yield Check("damage", "bad", f"{count(run.bad_event_lines, 'unreadable line')} in events.jsonl, stepped over")
    if run.torn_bytes and not running:
        yield Check("damage", "note", f"{size(run.torn_bytes)} at the end are no whole record: a crash or a full disk")


def _fired(run: Run) -> dict[SeriesKey, bool]:
    """Whether each series was measured at least once."""
    fired: dict[SeriesKey, bool] = {}
    for block in run.blocks:
        for key, column in zip(block.table.keys, block.measured.T, strict=True):
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
                yield Check(f"tap {tap}", "note", "not laid out in this run's log")
            continue
        where = f"{count(len(sites), 'layer')}, " if sites else ""
        found = f"{where}{count(len(mine), 'signal') if not sites else f'{len(mine):,} series'}"
        if silent:
            yield Check(f"tap {tap}", "note", f"{found}; never measured: {listed([clean(key) for key in silent])}")
        else:
            yield Check(f"tap {tap}", "ok", f"{found}, all measured")


def _missing(run: Run) -> Iterator[Check]:
    """Taps that should have fired and did not, by reason, as the last coverage event tells."""
    reports = [event for event in run.events if event.kind == "coverage"]
    if not reports:
        yield Check("coverage", "note", "no report in this log: the run ended before its first recorded steps")
        return
    reasons = missing(reports[-1].data)
    if not reasons:
        yield Check("coverage", "ok", "every tap that should have fired did")
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
            "training is not disturbed; the traceback is in events.jsonl",
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
        yield Check("overhead", "note", found, "this model's steps are short: watch fewer layers, or allow more")
    else:
        yield Check("overhead", "ok", found)


def _end(run: Run) -> Iterator[Check]:
    ends = [event for event in run.events if event.kind == "end"]
    if not ends:
        yield Check("end", "note", "no end event: the run goes on, or nothing was there to write it")
        return
    reason, error = clean(ends[-1].data.get("reason")), clean(ends[-1].data.get("error") or "")
    yield Check("end", "ok" if reason == "finished" else "note", f"{reason}{f': {error}' if error else ''}")
