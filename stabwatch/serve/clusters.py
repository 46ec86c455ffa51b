"""Runs that met the same first incident, and the configuration that they share and others do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stabwatch.alerts.conditions import CONDITIONS, title_of
from stabwatch.serve.run import Row

SHARED = 0.9
"""Share of a cluster's runs that have a setting which counts as shared."""
ELSEWHERE = 0.5
"""Largest share of all other runs that may have it too."""
MOST = 6


@dataclass(frozen=True)
class Shared:
    """A setting that most runs of a cluster have. here, elsewhere: the share of runs that have it, 0 to 1."""

    name: str
    value: str
    here: float
    elsewhere: float


@dataclass(frozen=True)
class Cluster:
    """The runs whose first incident is the same. first: its condition; '' for runs without any."""

    first: str
    title: str
    runs: tuple[str, ...]
    shared: tuple[Shared, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def clusters(rows: Sequence[Row], facts: Mapping[str, Mapping[str, str]]) -> list[Cluster]:
    """The clusters, the largest first. facts: configuration of each run, flat, by identifier."""
    members: dict[str, list[str]] = {}
    for row in rows:
        if row["judged"] or row["first"]:
            members.setdefault(row["first"], []).append(row["id"])
    everyone = [ident for mine in members.values() for ident in mine]
    total = Counter(fact for ident in everyone for fact in facts.get(ident, {}).items())
    found = []
    for first, mine in members.items():
        counts = Counter(fact for ident in mine for fact in facts.get(ident, {}).items())
        shared = _shared(counts, len(mine), total, len(everyone)) if first and len(mine) > 1 else ()
        title = (title_of(first) if first in CONDITIONS else first) if first else "No incident"
        found.append(Cluster(first, title, tuple(mine), shared))
    return sorted(found, key=lambda c: (not c.first, -len(c.runs), c.first))


def settings_of(facts: Mapping[str, Mapping[str, str]]) -> dict[str, int]:
    """Number of different values of each setting that some runs have, by name; a run without it counts as one."""
    values: dict[str, set[str]] = {}
    having: Counter[str] = Counter()
    for mine in facts.values():
        having.update(mine.keys())
        for name, value in mine.items():
            values.setdefault(name, set()).add(value)
    return {name: len(values[name]) + (having[name] < len(facts)) for name in sorted(values)}


def _shared(
    here: Counter[tuple[str, str]], size: int, total: Counter[tuple[str, str]], everyone: int
) -> tuple[Shared, ...]:
    others = everyone - size
    found = []
    for (name, value), count in here.items():
        share, elsewhere = count / size, (total[name, value] - count) / others if others else 0.0
        if share >= SHARED and others and elsewhere <= ELSEWHERE:
            found.append(Shared(name, value, share, elsewhere))
    return tuple(sorted(found, key=lambda s: (s.elsewhere - s.here, s.name))[:MOST])
