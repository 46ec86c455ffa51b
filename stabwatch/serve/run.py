"""One of many runs, followed at the cost of a few reads: its metadata, its events, its newest records."""

from __future__ import annotations

import math
import os
import pwd
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from stabwatch.analysis.compare.curve_set import settings
from stabwatch.errors import RunLogError
from stabwatch.runlog import Event, Meta
from stabwatch.runlog.glance import Glance
from stabwatch.runlog.labels import LABELS
from stabwatch.runlog.process import ProcessWatch
from stabwatch.runlog.reader import read_meta
from stabwatch.runlog.schema import EVENTS, LEASE
from stabwatch.runlog.segment import Tail
from stabwatch.serve.folders import Stamp, changed, identifier, stamp
from stabwatch.serve.headline import Headline

Row = dict[str, Any]
"""One run in the list, ready for JSON."""
READ = 1 << 20
"""Bytes of the events that are read at a time."""
LAST = 1 << 12
"""Bytes at the end of the events that a first look reads: a run that has ended says so there."""
LONGEST = 2000
"""Characters of a text in the list."""
_KIND = re.compile(rb'^\{"kind": ?"(start|end|alert|optimizer)"')
_OVER = ("killed", "exception")


class ListedRun:
    """A run of the list. `look` reads a few bytes, `poll` what is new; `row` says what is known.

    facts: its configuration, flat. latest: the last values of the signals of the whole run.
    """

    def __init__(self, root: Path, path: Path) -> None:
        self.path = path
        self.folder = path.relative_to(root).as_posix()
        self.id = identifier(self.folder)
        self.stamp: Stamp = []
        self.read = False
        """Whether its events and its newest records have been read."""
        self.meta: Meta | None = None
        self.state = "unknown"
        self.agent = True
        """Whether the training starts an agent of its own."""
        self.facts: dict[str, str] = {}
        self.latest: dict[str, float] = {}
        self.step: int | None = None
        self.time: float | None = None
        self._detail = ""
        self._ended: Event | None = None
        self._headline = Headline()
        self._optimizers: list[Event] = []
        self._events = Tail(path / EVENTS)
        self._glance = Glance(path)
        self._process: ProcessWatch | None = None
        self._missing = 0
        self._owner = _owner(path)

    @property
    def live(self) -> bool:
        """Whether its training process is there, as far as is known."""
        return self.state == "running"

    @property
    def judged(self) -> bool:
        """Whether an agent has evaluated the rules on it."""
        return (self.path / LEASE).exists()

    @property
    def firing(self) -> list[tuple[str, str, str]]:
        """Rule, severity and layer of each alert that fires now."""
        return self._headline.firing

    def look(self, stamp: Stamp) -> None:
        """Find out whether it goes on, by its metadata and the end of its events. stamp: of its folder.

        That takes a fraction of a millisecond, so thousands of runs are soon in the list.
        """
        self.stamp = stamp
        with self._told():
            self._look()

    def _look(self) -> None:
        if self._opened() and self.meta is not None:
            ends = [event for event in self._last_events() if event.kind in ("start", "end")]
            if ends and ends[-1].kind == "end":
                self._ended = ends[-1]
                self.step, self.time = self._ended.step, self._ended.time
            self.state, self._detail = self._state(self.meta)
            self._ended = None

    def poll(self) -> None:
        """Read what is new. What cannot be read is told in the row."""
        with self._told():
            self._poll()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Whatever is wrong with one run hides no other."""
        try:
            yield
        except RunLogError as error:
            self.state, self._detail = "unreadable", str(error)
        except Exception as error:
            self.state, self._detail = "unreadable", f"It cannot be read: {type(error).__name__}: {error}."

    def _poll(self) -> None:
        labels, self.stamp = self._labels(), stamp(self.path)
        if labels != self._labels():
            self.meta = None
        if not self._opened() or self.meta is None:
            return
        for event in self._read():
            self._observe(event)
        if not self.facts:
            self.facts = {name: str(value)[:80] for name, value in settings(self.meta, self._optimizers).items()}
        self.read = True
        if self._glance.poll():
            self.step, self.time, self.latest = self._glance.step, self._glance.time, self._glance.values
        self.state, self._detail = self._state(self.meta)
        if not self.live:
            self._glance.close()

    def row(self) -> Row:
        """What is known, in bounded length."""
        verdict: Row = {"severity": "", "first": "", "active": 0}
        with self._told():
            verdict = self._verdict()
        meta = self.meta
        found: Row = {
            "id": self.id, "folder": self.folder, "state": self.state, "end": self._detail, "owner": self._owner,
            "step": self.step, "time": self.time, "loss": _number(self.latest.get("loss", math.nan)),
            "loss_broken": "loss" in self.latest and not math.isfinite(self.latest["loss"]),
            "name": meta.run if meta else self.folder.rpartition("/")[2],
            "called": meta.name if meta else "", "notes": meta.notes if meta else "",
            "host": meta.host if meta else "", "created": meta.created if meta else None,
            "model": str(meta.model.get("name", "")) if meta else "",
            "parameters": _whole(meta.model.get("parameters")) if meta else None,
            "world": meta.world_size if meta else 1,
            "judged": self.judged, "read": self.read or self.state == "unreadable",
            "tags": list(meta.tags) if meta else [],
        }  # fmt: skip
        return _short({**found, "verdict": self._detail, **verdict})

    def _quiet(self) -> float:
        """Seconds since something was written."""
        return max(0.0, time.time() - changed(self.stamp) / 1e9)

    def _labels(self) -> list[str | int] | None:
        return next((entry for entry in self.stamp if entry[0] == LABELS), None)

    def _verdict(self) -> Row:
        seen = self._headline
        severity, text, first = seen.severity, seen.text, seen.first
        if self.state in _OVER and first == "":
            severity, first = "critical", "TrainingStopped"
            text = f"The training ended: {self._detail or self.state}."
        elif not text and self.state == "unreadable":
            text = self._detail
        elif not text and not self.read:
            text = "Its log has not been read yet."
        elif not text and not self.judged:
            text = "No rules have been evaluated on this run yet."
        elif not text and self.step is None:
            text = self._glance.problem or "Nothing has been recorded yet."
        elif not text:
            text = f"Nothing left its normal range up to step {self.step}."
        return {"severity": severity, "verdict": text, "first": first, "active": seen.active if self.live else 0}

    def _opened(self) -> bool:
        try:
            self.meta = self.meta or self._open()
        except RunLogError as error:
            self.state, self._detail = "unreadable", str(error)
        return self.meta is not None

    def _open(self) -> Meta:
        meta = read_meta(self.path)
        self.agent = bool(meta.config.get("agent", True))
        self._process = ProcessWatch(meta)
        return meta

    def _last_events(self) -> list[Event]:
        size = next((int(size) for name, size, _ in self.stamp if name == EVENTS), 0)
        last = Tail(self.path / EVENTS)
        last.offset = max(0, size - LAST)
        try:
            return [event for line in last.read().split(b"\n") if (event := _event(line)) is not None]
        except RunLogError:
            return []

    def _read(self) -> Iterator[Event]:
        while True:
            data = self._events.read(READ)
            whole = data[: data.rfind(b"\n") + 1]
            if not whole and len(data) == READ:
                whole = data  # a line longer than that is none of ours
            if not whole:
                return
            self._events.offset += len(whole)
            for line in whole.split(b"\n"):
                event = _event(line)
                if event is not None:
                    yield event

    def _observe(self, event: Event) -> None:
        if event.kind == "alert":
            self._headline.observe(event)
        elif event.kind == "optimizer" and self.meta is not None:
            self._optimizers.append(event)
            self.facts = {}
        elif event.kind in ("start", "end"):
            self._ended = event if event.kind == "end" else None

    def _state(self, meta: Meta) -> tuple[str, str]:
        end = self._ended
        mistaken = end is not None and end.data.get("by") == "agent" and (self.time or 0.0) > end.time
        if end is not None and not mistaken:
            return str(end.data.get("reason", "ended")), str(end.data.get("error") or end.data.get("detail") or "")
        gone = self._process.gone(self._quiet()) if self._process else None
        self._missing = self._missing + 1 if gone else 0
        sure = self._missing > 1 or self.state == "unknown"  # its last records may have been written meanwhile
        return ("killed", gone.detail) if gone and sure else ("running", "")


def _event(line: bytes) -> Event | None:
    """The event of a line, if it is one that the list needs."""
    if not _KIND.match(line):
        return None
    try:
        return Event.from_json(line)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _owner(path: Path) -> str:
    try:
        return _name_of(os.stat(path).st_uid)
    except OSError:
        return ""


@lru_cache(maxsize=1024)
def _name_of(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return ""


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _short(row: Row) -> Row:
    """Texts of others are cut, and there are not too many of them."""
    return {name: value[:LONGEST] if isinstance(value, str) else value for name, value in row.items()} | {
        "tags": [tag[:100] for tag in row["tags"][:50]]
    }


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
