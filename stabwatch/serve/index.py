"""The list of all runs below a folder: found, followed, kept up to date."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from stabwatch.serve import cache
from stabwatch.serve.cache import Known
from stabwatch.serve.folders import Stamp, identifier, run_folders
from stabwatch.serve.run import ListedRun, Row

FIND_SECONDS = 10.0
"""How often new folders are looked for, and ended runs looked at: one may go on."""
READ_SECONDS = 1.0
"""How long runs that are in the list already are read in one round: those that go on are waiting."""
READ_AT_LEAST = 16
SAVE_SECONDS = 30.0
ENDED_SECONDS = 600.0
"""How long an ended run is still on /metrics: several scrapes."""
_JUDGEMENT = ("severity", "verdict", "first", "active", "judged")
GONE = 1000
"""Deleted runs that are remembered for the pages that are open."""


class Index:
    """All runs below `root`. `poll` is called by one thread; everything else by any.

    A row of the list is replaced as a whole and has the version `v` of the list that it appeared in.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.version = 0
        self.polled = time.monotonic()
        self.complete = False
        """Whether every run is in the list."""
        self.problem = ""
        self._lock = threading.Lock()
        self._rows: dict[str, Row] = {}
        self._facts: dict[str, dict[str, str]] = {}
        self._gone: list[tuple[int, str]] = []
        self._runs: dict[str, ListedRun] = {}
        """Runs that go on, by folder."""
        self._unread: dict[str, ListedRun] = {}
        """Runs that are in the list and have not been read, by folder, in the order in which they will be."""
        self._ended: dict[str, tuple[float, ListedRun]] = {}
        """Runs that ended a short time ago, by identifier."""
        self._known = cache.load(root)
        self._folders: dict[str, Path] = {}
        self._by_id: dict[str, str] = {}
        self._found = -1e9
        self._saved = time.monotonic()
        self._changed = False

    def poll(self) -> None:
        """Look for new runs, and for what is new in those that go on. Raises OSError if the root cannot be read."""
        now = time.monotonic()
        if now - self._found >= FIND_SECONDS:
            self._find()
            self._found = now
        for run in self.live():
            self._follow(run)
            if not run.live:
                self._ended[run.id] = (now, self._runs.pop(run.folder))
            self.polled = time.monotonic()
        self._ended = {i: (when, run) for i, (when, run) in self._ended.items() if now - when < ENDED_SECONDS}
        self._read()
        self.polled = time.monotonic()
        if self._changed and now - self._saved >= SAVE_SECONDS:
            self.save()

    @property
    def unread(self) -> int:
        """Number of runs in the list that have not been read."""
        return len(self._unread)

    def judge(self, folder: str, judgement: Row) -> None:
        """Keep what an analysis found in an ended run. judgement: the fields of a row that say so."""
        known = self._known.get(folder)
        if known is not None:
            row = {**known.row, **judgement, "judged": True}
            self._known[folder] = Known(known.stamp, row, known.facts)
            self._changed = True
            self._put(folder, row, known.facts)

    def save(self) -> None:
        """Write what is known of ended runs; where that is not allowed, it is read again next time."""
        self._changed, self._saved = False, time.monotonic()
        with suppress(OSError):
            cache.save(self.root, self._known)

    def path(self, ident: str) -> Path | None:
        """The folder of the run with an identifier."""
        folder = self._by_id.get(ident)
        return None if folder is None else self._folders.get(folder)

    def row(self, ident: str) -> Row | None:
        """The row of a run."""
        return self._rows.get(ident)

    def live(self) -> list[ListedRun]:
        """The runs that go on. For the thread that polls, and for others to look at."""
        return list(self._runs.values())

    def shown(self) -> list[ListedRun]:
        """The runs that go on, and those that ended a short time ago."""
        return [*self._runs.values(), *(run for _, run in list(self._ended.values()) if run.folder not in self._runs)]

    def rows(self) -> list[Row]:
        """The whole list."""
        with self._lock:
            return list(self._rows.values())

    def facts(self, ident: str) -> dict[str, str]:
        """The configuration of a run, flat; empty if it is not known."""
        return self._facts.get(ident, {})

    def since(self, version: int) -> dict[str, Any]:
        """Rows that are new or have changed since a version of the list, and what was deleted."""
        with self._lock:
            forgotten = bool(self._gone) and version < self._gone[0][0] - 1 and len(self._gone) >= GONE
            start = -1 if forgotten or version > self.version else version
            return {
                "version": self.version,
                "whole": start < 0,
                "complete": self.complete,
                "problem": self.problem,
                "unread": self.unread,
                "rows": [row for row in self._rows.values() if row["v"] > start],
                "gone": [ident for v, ident in self._gone if v > start],
            }

    def _follow(self, run: ListedRun) -> None:
        run.poll()
        row = run.row()
        known = self._known.get(run.folder)
        if known is not None and known.row["judged"] and not row["judged"] and known.row["step"] == row["step"]:
            row |= {name: known.row[name] for name in _JUDGEMENT}
        self._put(run.folder, row, run.facts)
        if run.live or run.state == "unreadable":
            self._known.pop(run.folder, None)
        else:
            self._known[run.folder] = Known(run.stamp, row, run.facts)
            self._changed = True

    def _find(self) -> None:
        """Put every run into the list; those that are new or have changed will be read."""
        there = {path.relative_to(self.root).as_posix(): (path, at) for path, at in run_folders(self.root).items()}
        for folder in [folder for folder in self._folders if folder not in there]:
            self._remove(folder)
        self._folders = {folder: path for folder, (path, _) in there.items()}
        self._by_id = {identifier(folder): folder for folder in there}
        for folder, (_, at) in there.items():
            self._meet(folder, at)
            self.polled = time.monotonic()
        for folder in [folder for folder in self._known if folder not in there]:
            del self._known[folder]
        self._unread = dict(sorted(self._unread.items(), key=lambda item: not item[1].live))
        self.complete = True

    def _meet(self, folder: str, at: Stamp) -> None:
        if folder in self._runs or folder in self._unread:
            return
        known = self._known.get(folder)
        if known is None or known.stamp != at:
            run = self._unread[folder] = ListedRun(self.root, self._folders[folder])
            if known is None:
                run.look(at)
                self._put(folder, run.row(), run.facts)
        elif identifier(folder) not in self._rows:
            self._put(folder, known.row, known.facts)

    def _read(self) -> None:
        """Read runs of the list, for a while."""
        until = time.monotonic() + READ_SECONDS
        for number, (folder, run) in enumerate(list(self._unread.items())):
            if number >= READ_AT_LEAST and time.monotonic() > until:
                return
            del self._unread[folder]
            self._follow(run)
            if run.live:
                self._runs[folder] = run

    def _put(self, folder: str, row: Row, facts: dict[str, str]) -> None:
        ident = identifier(folder)
        with self._lock:
            old = self._rows.get(ident)
            if old is not None and {**row, "v": old["v"]} == old:
                return
            self.version += 1
            self._rows[ident] = {**row, "v": self.version}
            self._facts[ident] = facts

    def _remove(self, folder: str) -> None:
        ident = identifier(folder)
        self._runs.pop(folder, None)
        self._unread.pop(folder, None)
        self._known.pop(folder, None)
        with self._lock:
            self.version += 1
            self._rows.pop(ident, None)
            self._facts.pop(ident, None)
            self._gone = [*self._gone, (self.version, ident)][-GONE:]
