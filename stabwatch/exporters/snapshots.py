"""The state of a run as a Snapshot, for a live agent and for an export."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from stabwatch.exporters.cardinality import Coarse, Shown
from stabwatch.exporters.latest import Latest
from stabwatch.exporters.prometheus import AlertDetail, Snapshot
from stabwatch.runlog import Meta, SeriesKey


def snapshot(
    meta: Meta,
    latest: Latest,
    now: float,
    *,
    state: str,
    derived: Mapping[SeriesKey, float],
    firing: Iterable[tuple[str, str, str]],
    violations: Mapping[tuple[str, str], int],
    errors: int = 0,
    coarse: Coarse | None = None,
    low: Iterable[str] = (),
    details: Iterable[AlertDetail] = (),
    info: Iterable[tuple[str, str]] = (),
) -> Snapshot:
    """The content of a scrape at `now`, on the clock of `latest`, within its limit of series.

    firing: (rule, severity, layer). violations: times that each (rule, layer) began to fire. coarse: the same run by
    groups, with its own limit of series. low: derived signals where low is bad. details: of firing alerts. info: more
    labels of the run.
    """
    r = latest
    cap, series = r.cap, Shown(tuple(r.keys), r.last.copy(), r.window(now), r.totals.copy(), r.nonfinite.copy())
    if coarse is not None:
        cap, series = coarse.cap, coarse.shown(r, now)
        firing, violations, derived = _places(coarse, firing), _sums(coarse, violations), coarse.derived(derived, low)
    alerts = [alert for alert in firing if cap.admit((alert[0], alert[2]), 2, urgent=True)]
    shown = [(key, value) for key, value in derived.items() if cap.admit(("derived", key))]
    counted = [(*where, n) for where, n in violations.items() if cap.admit(where, 2, urgent=True)]
    return Snapshot(
        run=meta.run,
        info=(*info_labels(meta), *info),
        state=state,
        step=r.step,
        time=r.time,
        keys=series.keys,
        last=series.last,
        window=series.window,
        totals=series.totals,
        nonfinite=series.nonfinite,
        derived=tuple(shown),
        firing=tuple(dict.fromkeys(alerts)),
        details=tuple(d for d in details if cap.admit(("detail", d.rule, d.layer), 2, urgent=True)),
        violations=tuple(counted),
        agent_errors=errors,
        series_dropped=cap.dropped,
    )


def _places(coarse: Coarse, firing: Iterable[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    layers: dict[tuple[str, str], list[str]] = {}
    for rule, severity, layer in firing:
        layers.setdefault((rule, severity), []).append(layer)
    return [(*which, place) for which, mine in layers.items() for place in coarse.places(mine)]


def _sums(coarse: Coarse, violations: Mapping[tuple[str, str], int]) -> dict[tuple[str, str], int]:
    """The sum over the layers of each group, and the first layers individually."""
    layers: dict[str, list[str]] = {}
    found: dict[tuple[str, str], int] = {}
    for (rule, layer), n in violations.items():
        layers.setdefault(rule, []).append(layer)
        place = (rule, coarse.group(layer))
        found[place] = found.get(place, 0) + n
    for rule, mine in layers.items():
        for layer in coarse.first(mine):
            found.setdefault((rule, layer), violations[rule, layer])
    return found


def info_labels(meta: Meta) -> tuple[tuple[str, str], ...]:
    """The labels of stabwatch_run_info in addition to `run`."""
    found = {
        "host": meta.host,
        "model": meta.model.get("name", ""),
        "parameters": meta.model.get("parameters", ""),
        "world_size": meta.world_size,
        "stabwatch_version": meta.versions.get("stabwatch", ""),
        "torch_version": meta.versions.get("torch", ""),
    }
    return tuple((name, str(value)) for name, value in found.items())
