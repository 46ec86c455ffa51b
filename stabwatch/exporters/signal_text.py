"""The text of the signals on /metrics, from a template: to write thousands of series again would take most of a scrape.

The template is what prometheus_client writes for the same series, with a place for each number. It is made again when
the series change, or which of them have a finite value; the lines of a run are kept while its series are the same.
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
    """A line of the text. place: where its number is in `_numbers`."""

    text: str
    place: int


@dataclass(frozen=True)
class _Family:
    """The lines of a metric. head: its help and its type."""

    head: str
    lines: list[_Line]


@dataclass(frozen=True)
class _Written:
    """The lines of a run's series in one format, by metric. derived: all that it ever had; some come and go."""

    keys: Sequence[SeriesKey]
    derived: Sequence[SeriesKey]
    families: dict[str, _Family]


@dataclass(frozen=True)
class _Template:
    """The lines that had a finite value last. written: of which runs. places: of the numbers of all of them."""

    written: list[_Written]
    shown: NDArray[np.bool_]
    text: str
    places: NDArray[np.int64]


class SignalText:
    """Writes the signals and the derived signals of snapshots. For any thread. derived: all of the latter."""

    def __init__(self, derived: Iterable[DerivedMetric] = ()) -> None:
        self._derived = {d.name: d for d in derived}
        self._written: dict[str, dict[str, _Written]] = {}
        self._templates: dict[str, _Template] = {}
        self._lock = threading.Lock()

    def encode(self, snapshots: Sequence[Snapshot], encoder: Encoder, kind: str) -> bytes:
        """The text without an end mark: each metric with the samples of all runs, which have names of their own.

        kind: identifies the format that the encoder writes.
        """
        with self._lock:
            known = self._written.pop(kind, {})
            mine = {s.run: self._of(s, known.get(s.run), encoder) for s in snapshots}
            self._written[kind] = mine  # the newest format is the last
            for old in list(self._written)[:-KEPT]:
                del self._written[old]
                self._templates.pop(old, None)
            written, last = list(mine.values()), self._templates.get(kind)
            each = [_numbers(s, mine[s.run]) for s in snapshots]
            shown = np.concatenate([np.empty(0, np.bool_), *map(_shown, snapshots, each)])
            numbers = np.concatenate([np.empty(0), *each])
            if last is None or not _same(last.written, written) or not np.array_equal(last.shown, shown):
                last = self._templates[kind] = _template(written, [*map(len, each)], shown)
            return (last.text % tuple(numbers[last.places].tolist())).encode()

    def _of(self, s: Snapshot, known: _Written | None, encoder: Encoder) -> _Written:
        """The lines of a run, found by writing the place of each number instead of the number."""
        size, known = len(s.keys), known if known is not None and known.keys == s.keys else None
        derived = list(dict.fromkeys([*(key for key, _ in s.derived), *(known.derived if known is not None else ())]))
        if known is not None and len(derived) == len(known.derived):
            return known
        last, window, totals = (np.arange(i * size, (i + 1) * size, dtype=np.float64) for i in range(3))
        numbered = tuple((key, float(3 * size + i)) for i, key in enumerate(derived) if key.signal in self._derived)
        s = replace(s, last=last, window=window, totals=totals, derived=numbered)
        families: dict[str, _Family] = {}
        head = name = ""
        written = chain(signal_families(s), derived_families(s, self._derived))
        for line in encoder(_Families(written)).removesuffix(END).decode().split("\n")[:-1]:
            text = line.replace("%", "%%")
            if line.startswith("#"):
                head = f"{head}{text}\n" if not line.startswith("# HELP") else f"{text}\n"
                name = line.removeprefix("# TYPE ") if line.startswith("# TYPE ") else name
                continue
            start, _, number = text.rpartition(" ")
            place = int(float(number))
            form = "%.7g" if place < 3 * size else "%r"  # the log has float32; derived signals are computed
            family = families.setdefault(name, _Family(head, []))
            family.lines.append(_Line(f"{start} {form}\n", place))
        return _Written(s.keys, derived, families)


def _same(one: list[_Written], other: list[_Written]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def _template(written: list[_Written], sizes: list[int], shown: NDArray[np.bool_]) -> _Template:
    """sizes: how many numbers each run has."""
    texts: dict[str, list[str]] = {}
    places: dict[str, list[int]] = {}
    start = 0
    for run, size in zip(written, sizes, strict=True):
        for name, family in run.families.items():
            kept = [line for line in family.lines if shown[start + line.place]]
            if kept:
                texts.setdefault(name, [family.head]).extend(line.text for line in kept)
                places.setdefault(name, []).extend(start + line.place for line in kept)
        start += size
    text = "".join(chain.from_iterable(texts.values()))
    return _Template(written, shown, text, np.array(list(chain.from_iterable(places.values())), np.int64))


def _numbers(s: Snapshot, written: _Written) -> NDArray[np.float64]:
    values = dict(s.derived)
    derived = [values.get(key, np.nan) for key in written.derived]
    return np.concatenate([s.last, s.window, s.totals, derived]).astype(np.float64)


def _shown(s: Snapshot, numbers: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which numbers are written: counters always, others if they are finite."""
    shown = np.isfinite(numbers)
    shown[2 * len(s.keys) : 3 * len(s.keys)] = True
    return shown


class _Families(Collector):
    """Some families as a registry: what an encoder asks for."""

    def __init__(self, families: Iterator[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """The families."""
        return self._families
