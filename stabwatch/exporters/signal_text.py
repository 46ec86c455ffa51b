"""The text of the signals on /metrics, from a template: writing thousands of series anew would take most of a scrape.

The template is what prometheus_client writes for the same series, with a place for each number. It is made again when
the series change, or which of them have a finite value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from stabwatch.exporters.prometheus import Snapshot, signal_families
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
    lines: list[_Line]
    shown: NDArray[np.bool_]
    template: str
    places: NDArray[np.int64]


class SignalText:
    """Writes the signals of a snapshot. One thread at a time."""

    def __init__(self) -> None:
        self._known: dict[str, _Written] = {}

    def encode(self, snapshot: Snapshot, encoder: Encoder, kind: str) -> bytes:
        """The text without an end mark. kind: identifies the format that the encoder writes."""
        numbers = _numbers(snapshot)
        shown = np.isfinite(numbers)
        shown[2 * len(snapshot.keys) :] = True  # counters are always shown
        known = self._known.get(kind)
        if known is None or known.run != snapshot.run or not _same(known.keys, snapshot.keys):
            known = self._known[kind] = _written(snapshot, encoder)
            for old in list(self._known)[:-KEPT]:
                del self._known[old]
        if not np.array_equal(known.shown, shown):
            kept = [line for line in known.lines if line.place < 0 or shown[line.place]]
            known.template = "".join(line.text for line in kept)
            known.places = np.array([line.place for line in kept if line.place >= 0], np.int64)
            known.shown = shown
        return (known.template % tuple(numbers[known.places].tolist())).encode()


def _same(a: Sequence[SeriesKey], b: Sequence[SeriesKey]) -> bool:
    return a is b or (len(a) == len(b) and a == b)


def _numbers(s: Snapshot) -> NDArray[np.float64]:
    return np.concatenate([s.last, s.window, s.totals]).astype(np.float64)


def _written(s: Snapshot, encoder: Encoder) -> _Written:
    """All lines, found by writing the place of each number instead of the number."""
    size = len(s.keys)
    last, window, totals = (np.arange(i * size, (i + 1) * size, dtype=np.float64) for i in range(3))
    text = encoder(_Families(signal_families(replace(s, last=last, window=window, totals=totals)))).removesuffix(END)
    lines = []
    for line in text.decode().splitlines():
        written = line.replace("%", "%%")
        if line.startswith("#"):
            lines.append(_Line(f"{written}\n", -1))
            continue
        head, _, number = written.rpartition(" ")
        lines.append(_Line(f"{head} %.7g\n", int(float(number))))
    return _Written(s.run, s.keys, lines, np.empty(0, bool), "", np.empty(0, np.int64))


class _Families(Collector):
    """Some families as a registry: what an encoder asks for."""

    def __init__(self, families: Iterator[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """The families."""
        return self._families
