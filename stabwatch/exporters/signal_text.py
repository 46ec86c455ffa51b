"""The text of the signals on /metrics, from a template: to write thousands of series again would take most of a scrape.

The template is what prometheus_client writes for the same series, with a place for each number. It is made again when
the series change, or which of them have a finite value.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from stabwatch.exporters.prometheus import DerivedMetric, Snapshot, derived_families, signal_families
from stabwatch.runlog import SeriesKey

Encoder = Callable[[Any], bytes]
END = b"# EOF\n"
"""Ends a text in the OpenMetrics format."""
KEPT = 8


@dataclass(frozen=True)
class _Line:
    """A line of the text. place: where its number is in `_numbers`; -1 for a line without one."""

    text: str
    place: int


@dataclass
class _Written:
    """The lines of some series in one format, and the template of those that had a finite value last."""

    run: str
    keys: Sequence[SeriesKey]
    derived: Sequence[SeriesKey]
    lines: list[_Line]
    shown: NDArray[np.bool_]
    template: str
    places: NDArray[np.int64]


class SignalText:
    """Writes the signals and the derived signals of a snapshot. For any thread. derived: all of the latter."""

    def __init__(self, derived: Iterable[DerivedMetric] = ()) -> None:
        self._derived = {d.name: d for d in derived}
        self._known: dict[str, _Written] = {}
        self._lock = threading.Lock()

    def encode(self, snapshot: Snapshot, encoder: Encoder, kind: str) -> bytes:
        """The text without an end mark. kind: identifies the format that the encoder writes."""
        numbers = _numbers(snapshot)
        shown = np.isfinite(numbers)
        size, derived = len(snapshot.keys), [key for key, _ in snapshot.derived]
        shown[2 * size : 3 * size] = True  # counters are always shown
        with self._lock:
            known = self._known.get(kind)
            if known is None or (known.run, known.keys, known.derived) != (snapshot.run, snapshot.keys, derived):
                known = self._known[kind] = self._written(snapshot, encoder)
                for old in list(self._known)[:-KEPT]:
                    del self._known[old]
            if not np.array_equal(known.shown, shown):
                kept = [line for line in known.lines if line.place < 0 or shown[line.place]]
                known.template = "".join(line.text for line in kept)
                known.places = np.array([line.place for line in kept if line.place >= 0], np.int64)
                known.shown = shown
            return (known.template % tuple(numbers[known.places].tolist())).encode()

    def _written(self, s: Snapshot, encoder: Encoder) -> _Written:
        """All lines, found by writing the place of each number instead of the number."""
        size, derived = len(s.keys), [key for key, _ in s.derived]
        last, window, totals = (np.arange(i * size, (i + 1) * size, dtype=np.float64) for i in range(3))
        numbered = tuple((key, float(3 * size + i)) for i, key in enumerate(derived) if key.signal in self._derived)
        s = replace(s, last=last, window=window, totals=totals, derived=numbered)
        families = chain(signal_families(s), derived_families(s, self._derived))
        lines = []
        for line in encoder(_Families(families)).removesuffix(END).decode().split("\n")[:-1]:
            written = line.replace("%", "%%")
            if line.startswith("#"):
                lines.append(_Line(f"{written}\n", -1))
                continue
            head, _, number = written.rpartition(" ")
            place = int(float(number))
            form = "%.7g" if place < 3 * size else "%r"  # the log has float32; derived signals are computed
            lines.append(_Line(f"{head} {form}\n", place))
        return _Written(s.run, s.keys, derived, lines, np.empty(0, bool), "", np.empty(0, np.int64))


def _numbers(s: Snapshot) -> NDArray[np.float64]:
    return np.concatenate([s.last, s.window, s.totals, [value for _, value in s.derived]]).astype(np.float64)


class _Families(Collector):
    """Some families as a registry: what an encoder asks for."""

    def __init__(self, families: Iterator[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """The families."""
        return self._families
