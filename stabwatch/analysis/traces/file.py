"""A file of traces: JSON lines, or one JSON document; packed or not."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stabwatch.analysis.readers.file import LogFile
from stabwatch.analysis.traces.instability import Instability, instability
from stabwatch.analysis.traces.labels import LABELS, Separation, is_right, label_of, separation
from stabwatch.analysis.traces.steps import NoTraceError, traces_of
from stabwatch.errors import LogError
from stabwatch.runlog import plain

SCHEMA_VERSION = 1
_IDS = ("custom_id", "id", "request_id", "task_id", "name")
_NUMBERS = {"peak": "peak", "mean": "mean", "entropy": "mean entropy", "place": "place of the peak"}


@dataclass(frozen=True)
class Trace:
    """One trace. line: of the file, from 1. right: its label; None if it has none."""

    name: str
    line: int
    right: bool | None
    found: Instability

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        numbers = {k: v for k, v in asdict(self.found).items() if k != "values"}
        known = {"name": self.name, "line": self.line, "right": self.right, "tokens": self.found.tokens, **numbers}
        return plain({**known, "values": self.found.values.tolist()})


@dataclass(frozen=True)
class Traces:
    """What a file holds. label: the field that was taken for the label. left_out: reasons, with how many records.

    separations: of wrong answers from right ones; empty unless there are both.
    """

    weight: float
    traces: tuple[Trace, ...]
    label: str | None
    separations: tuple[Separation, ...]
    left_out: dict[str, int] = field(default_factory=dict)

    def by_place(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(right, all) of the labelled traces whose peak is in the first half, and in the second."""
        halves = []
        for late in (False, True):
            mine = [t.right for t in self.traces if t.right is not None and (t.found.place >= 0.5) == late]
            halves.append((sum(mine), len(mine)))
        return halves[0], halves[1]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; numbers that are not finite are None."""
        out = {"schema_version": SCHEMA_VERSION, "lambda": self.weight, "label": self.label, "left_out": self.left_out}
        return {**out, "separations": plain([asdict(s) for s in self.separations]), "traces": self._listed()}

    def _listed(self) -> list[dict[str, Any]]:
        return [t.to_dict() for t in self.traces]


def read_traces(path: Path, weight: float = 1.0, label: str | None = None) -> Traces:
    """weight: lambda. label: the field with the label; by default one of `LABELS`, if records have it.

    Raises LogError if there is no trace in the file, or no record has the named label.
    """
    found: list[Trace] = []
    left_out: Counter[str] = Counter()
    fields = LABELS if label is None else (label,)
    seen: Counter[str] = Counter()
    for line, record in _records(path, left_out):
        try:
            traces = traces_of(record)
        except NoTraceError as error:
            left_out[str(error)] += 1
            continue
        for i, steps in enumerate(traces):
            measured = instability(steps, weight)
            if measured is None:
                left_out["it has no two successive steps with log-probabilities"] += 1
                continue
            name, right = _label(record, fields, i, len(traces))
            seen.update([name] if name else [])
            found.append(Trace(_name(record, line) + (f"/{i}" if len(traces) > 1 else ""), line, right, measured))
    if not found:
        reasons = "; ".join(f"{n} of its records: {reason}" for reason, n in left_out.items()) or "it is empty"
        raise LogError(f"{path} has no trace of a generation ({reasons}).")
    if label is not None and not seen:
        raise LogError(f"No record of {path} has a label in the field {label!r} (true or false, or a number).")
    return Traces(weight, tuple(found), next(iter(seen), None), _separations(found), dict(left_out))


def _records(path: Path, left_out: Counter[str]) -> Iterator[tuple[int, Any]]:
    source = LogFile(path)
    with source.open() as stream:
        head = source.text.lstrip()
        if head.startswith("[") or (head.startswith("{") and not _is_json(head.partition("\n")[0])):
            try:
                whole = json.loads(stream.read())
            except (ValueError, RecursionError):
                whole = None
            if whole is not None:
                yield from ((1, record) for record in (whole if _is_list_of_records(whole) else [whole]))
                return
            stream.seek(0)
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError):
                    left_out["it is no JSON"] += 1


def _is_list_of_records(x: Any) -> bool:
    """Or else a list is the steps of one trace."""
    return isinstance(x, list) and (any(map(_has_trace, x)) or not _has_trace(x))


def _has_trace(record: Any) -> bool:
    try:
        return bool(traces_of(record))
    except NoTraceError:
        return False


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _name(record: Any, line: int) -> str:
    known = record if isinstance(record, dict) else {}
    return next((str(known[k]) for k in _IDS if isinstance(known.get(k), str | int)), f"line {line}")


def _label(record: Any, fields: tuple[str, ...], index: int, count: int) -> tuple[str | None, bool | None]:
    """The field, and the label of the trace with this index; a list has one label for each trace."""
    for name in fields:
        value = label_of(record, name)
        if isinstance(value, list):
            value = value[index] if len(value) == count else None
        right = is_right(value)
        if right is not None:
            return name, right
    return None, None


def _separations(traces: list[Trace]) -> tuple[Separation, ...]:
    wrong, right = ([t.found for t in traces if t.right is kind] for kind in (False, True))
    if not wrong or not right:
        return ()
    return tuple(
        separation(title, [getattr(f, name) for f in wrong], [getattr(f, name) for f in right])
        for name, title in _NUMBERS.items()
        if all(math.isfinite(getattr(f, name)) for f in (*wrong, *right))
    )
