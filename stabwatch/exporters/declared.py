"""Name, help, type and label of each exported metric, derived from the catalogue.

A value of `watch.log` is exported under its name: `policy/kl` becomes the metric
`stabwatch_logged_policy_kl` with the label `name="policy/kl"`. Names that differ only in characters that Prometheus
does not allow share one metric and differ in that label.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from stabwatch.runlog import SeriesKey
from stabwatch.signals import CATALOGUE
from stabwatch.signals.declaration import Worst
from stabwatch.signals.reductions import REDUCTIONS

LOGGED = "logged_value"
"""The signal of the values of `watch.log`; the site of each series is the name that the user chose."""
_RESERVED = {"step", "time", "logged"}
"""Columns of a table, and the prefix of `own_name`."""
_ADOPTED: dict[str, Declared] = {}


@dataclass(frozen=True)
class Declared:
    """One exported metric.

    label: the label that holds the site of a series ('layer', 'group' or 'name'); empty for a signal of the run.
    worst: the end of a window that is exported beside the last value; None for a counter and for an index.
    """

    metric: str
    help: str
    counter: bool
    label: str
    worst: Worst | None

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of its labels."""
        return ("run", self.label) if self.label else ("run",)

    @property
    def window_metric(self) -> str:
        """Name of the worst value of the last minute."""
        return f"{self.metric}_window_{self.worst}"

    @property
    def series(self) -> int:
        """Number of series on /metrics for one series of the run log."""
        return 1 if self.worst is None else 2


def adopt(signals: Iterable[Mapping[str, Any]]) -> None:
    """Use the declarations in a run log's metadata: the plugins that declared them may not be installed here."""
    for s in signals:
        if isinstance(s, dict) and isinstance(s.get("name"), str) and s["name"] not in CATALOGUE:
            counter = s.get("kind") == "counter"
            worst: Literal["max", "min"] = "min" if s.get("worst") == "min" else "max"
            _ADOPTED[s["name"]] = Declared(
                f"stabwatch_{s['name']}", str(s.get("help", "")), counter, "" if s.get("scope") == "run" else "layer",
                None if counter else worst,
            )  # fmt: skip
    declared.cache_clear()


@cache
def declared(signal: str) -> Declared:
    """The declaration of a signal. A log of another version may have one that this catalogue does not know."""
    if signal in _ADOPTED:
        return _ADOPTED[signal]
    if signal not in CATALOGUE:
        counter = signal.endswith("_total")
        text = f"The run log's signal {signal}, which this version of stabwatch does not know."
        return Declared(f"stabwatch_{signal}", text, counter, "layer", None if counter else "max")
    s = CATALOGUE[signal]
    ops = {f.name: f.op for f in REDUCTIONS[s.reduction].fields}
    index = any(ops[field] == "arg" for field in s.fields)
    counter = s.kind == "counter"
    return Declared(s.metric, s.help, counter, s.label, None if counter or index else s.worst)


def declared_series(key: SeriesKey) -> Declared:
    """The declaration of one series; that of a number of `watch.log` has a metric name of its own."""
    found = declared(key.signal)
    if key.signal != LOGGED:
        return found
    return replace(found, metric=f"stabwatch_logged_{re.sub(r'[^a-zA-Z0-9_]', '_', key.layer)}")


def own_name(key: SeriesKey) -> SeriesKey:
    """The (signal, layer) under which tables and TensorBoard show a series.

    A number of `watch.log` has the user's own name and no layer. A name that begins like a signal, `loss` or
    `loss/valid`, gets the prefix `logged/`, so no two series have the same name.
    """
    if key.signal != LOGGED:
        return key
    first = key.layer.partition("/")[0]
    taken = first in CATALOGUE or first in _ADOPTED or first in _RESERVED
    return SeriesKey(f"logged/{key.layer}" if taken else key.layer, "")
