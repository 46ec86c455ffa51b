"""Runs of an object store on this machine: what is new there is copied, and then read like any folder."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from stabwatch.errors import RunLogError
from stabwatch.runlog.schema import EVENTS, META, SEGMENTS
from stabwatch.runlog.stores import Store, joined, parent_and_name, shown, url_of

FRESH_SECONDS = 10.0
"""A copy of this age is not compared with the store again."""
AGENT_FILES = "agent.*"
_mirrors: dict[str, Mirror] = {}
_lock = threading.Lock()


class Mirror:
    """A folder on this machine with the content of an address. Raises RunLogError if that cannot be opened.

    folder: of the copy. Several processes may copy the same.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._store = Store(url)
        digest = hashlib.sha256(url.encode()).hexdigest()[:16]
        self._place = _cache() / digest
        self.folder = self._place / (parent_and_name(url)[1] or "root")
        self._synced = -1e9

    def fresh(self) -> Path:
        """The copy, brought up to date if it is older than a few seconds. Raises RunLogError."""
        if time.monotonic() - self._synced > FRESH_SECONDS:
            try:
                self.sync()
            except OSError as error:
                raise RunLogError(f"{shown(self.url)} cannot be read: {error}") from error
        return self.folder

    def sync(self) -> None:
        """Copy what is new, delete what is gone. Raises OSError, with what has been copied so far left in place."""
        if self._store.is_file():
            self._store.read("", self.folder)
            return
        there = self._store.files()
        if not there:
            raise FileNotFoundError(2, "there is nothing", shown(self.url))
        order = sorted(there, key=lambda name: (-there[name].changed, not name.endswith(META)))
        for name in order:
            target = self.folder / name
            if _safe(name) and not _same(target, there[name].size, there[name].changed):
                self._store.read(name, target)
                os.utime(target, ns=(there[name].changed, there[name].changed))
        self._clear(set(there))
        self._synced = time.monotonic()

    def _clear(self, kept: set[str]) -> None:
        for path in list(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and name not in kept and not path.name.startswith("."):
                with suppress(OSError):
                    path.unlink()


def local(path: str | Path) -> Path:
    """A path as it is; for an address of a store, the copy of what is there now. Raises RunLogError.

    One file of a run folder stands for the run: read by itself it would be half of a log.
    """
    url = url_of(path)
    if url is None:
        here = Path(path)
        if not (here / META).exists() and here.is_dir() and next(here.glob(SEGMENTS), None) is not None:
            raise RunLogError(f"{here} is a run folder that has lost its {META}: its records mean nothing without it.")
        return here.parent if _is_part(here) else here
    with _lock:
        if url not in _mirrors:
            _mirrors[url] = Mirror(url)
        return _mirrors[url].fresh()


def _is_part(file: Path) -> bool:
    """Whether it is one of the files that make a run folder."""
    ours = any(file.match(name) for name in (META, EVENTS, SEGMENTS, AGENT_FILES))
    return ours and (file.parent / META).is_file() and not file.is_dir()


def runs_at(url: str) -> list[str]:
    """The addresses of the runs at an address or below it. Raises RunLogError."""
    try:
        names = Store(url).files()
    except OSError as error:
        raise RunLogError(f"{shown(url)} cannot be read: {error}") from error
    found = sorted(name.removesuffix(META).rstrip("/") for name in names if name.rpartition("/")[2] == META)
    if not found:
        raise RunLogError(f"{shown(url)} has no runs.")
    return [joined(url, name) if name else url for name in found]


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "stabwatch" / "stores"


def _safe(name: str) -> bool:
    return ".." not in name.split("/") and not name.startswith("/")


def _same(path: Path, size: int, changed: int) -> bool:
    try:
        facts = path.stat()
    except OSError:
        return False
    return facts.st_size == size and abs(facts.st_mtime_ns - changed) < 1_000_000
