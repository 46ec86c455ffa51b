"""The present of a run as one Snapshot: for an agent that is there now, and for one that looks back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from stabwatch.exporters.prometheus import Snapshot
from stabwatch.exporters.readings import Readings
from stabwatch.runlog import Meta, SeriesKey


def snapshot(
    meta: Meta,
    readings: Readings,
    now: float,
    *,
    state: str,
    derived: Mapping[SeriesKey, float],
    firing: Iterable[tuple[str, str, str]],
    violations: Mapping[tuple[str, str], int],
    errors: int = 0,
) -> Snapshot:
    """What a scrape shows at `now`, on the clock that `readings` was told of; within the cap of `readings`.

    firing: (rule, severity, layer). violations: times that each (rule, layer) began to fire.
    """
    r, admit = readings, readings.cap.admit
    loud = [alert for alert in firing if admit((alert[0], alert[2]), 2, urgent=True)]
    shown = [(key, value) for key, value in derived.items() if admit(("derived", key))]
    counted = [(*where, n) for where, n in violations.items() if admit(where, 2, urgent=True)]
    return Snapshot(
        run=meta.run,
        info=facts(meta),
        state=state,
        step=r.step,
        time=r.time,
        keys=tuple(r.keys),
        last=r.last.copy(),
        window=r.window(now),
        totals=r.totals.copy(),
        nonfinite=r.nonfinite.copy(),
        derived=tuple(shown),
        firing=tuple(dict.fromkeys(loud)),
        violations=tuple(counted),
        agent_errors=errors,
        series_dropped=r.cap.dropped,
    )


def facts(meta: Meta) -> tuple[tuple[str, str], ...]:
    """The labels of stabwatch_run_info beside `run`."""
    found = {
        "host": meta.host,
        "model": meta.model.get("name", ""),
        "parameters": meta.model.get("parameters", ""),
        "world_size": meta.world_size,
        "stabwatch_version": meta.versions.get("stabwatch", ""),
        "torch_version": meta.versions.get("torch", ""),
    }
    return tuple((name, str(value)) for name, value in found.items())
