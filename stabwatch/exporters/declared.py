"""How each series of a run log looks on the outside; everything is derived from the catalogue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from stabwatch.signals import CATALOGUE
from stabwatch.signals.declaration import Worst
from stabwatch.signals.reductions import REDUCTIONS

_ADOPTED: dict[str, Declared] = {}


@dataclass(frozen=True)
class Declared:
    """Name, help and type of a metric.

    layered: it has the label `layer`.
    worst: the end of a window that is exported beside the last value; None for a counter and for an index.
    """

    metric: str
    help: str
    counter: bool
    layered: bool
    worst: Worst | None

    @property
    def window_metric(self) -> str:
        """Name of the windowed worst."""
        return f"{self.metric}_window_{self.worst}"

    @property
    def series(self) -> int:
        """How many series on /metrics one series of the run log becomes."""
        return 1 if self.worst is None else 2


def adopt(signals: Iterable[Mapping[str, Any]]) -> None:
    """Take over the declarations that a run log brings along: those of plugins, whose code is not here."""
    for s in signals:
        if isinstance(s, dict) and isinstance(s.get("name"), str) and s["name"] not in CATALOGUE:
            counter, worst = s.get("kind") == "counter", "min" if s.get("worst") == "min" else "max"
            _ADOPTED[s["name"]] = Declared(
                f"stabwatch_{s['name']}", str(s.get("help", "")), counter, s.get("scope") != "run",
                None if counter else worst,  # type: ignore[arg-type]
            )  # fmt: skip
    declared.cache_clear()


@cache
def declared(signal: str) -> Declared:
    """The declaration of a signal. A log of another version may hold one that this catalogue does not know."""
    if signal in _ADOPTED:
        return _ADOPTED[signal]
    if signal not in CATALOGUE:
        counter = signal.endswith("_total")
        text = f"The run log's signal {signal}, which this version of stabwatch does not know."
        return Declared(f"stabwatch_{signal}", text, counter, True, None if counter else "max")
    s = CATALOGUE[signal]
    ops = {f.name: f.op for f in REDUCTIONS[s.reduction].fields}
    index = any(ops[field] == "arg" for field in s.fields)
    counter = s.kind == "counter"
    return Declared(s.metric, s.help, counter, s.scope == "layer", None if counter or index else s.worst)
