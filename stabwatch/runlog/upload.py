"""Copies a run folder to an object store while it is written, in a thread of its own."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

from stabwatch.runlog.atomic import atomic_output
from stabwatch.runlog.folder import RunFolder
from stabwatch.runlog.labels import LABELS
from stabwatch.runlog.schema import EVENTS, LEASE, META, segments_of
from stabwatch.runlog.stores import Store, joined, parent_and_name, shown

SENT = ".sent.json"
"""In the run folder: where it was sent, and what of it."""
EVERY_SECONDS = 15.0
MOST_SECONDS = 300.0
"""Longest pause after attempts that failed."""
CLOSE_SECONDS = 20.0
"""How long the end of the run waits for what is left."""
Fact = list[int]
_log = logging.getLogger("stabwatch")


class Uploader:
    """Sends metadata, labels, events and the segments that are closed. The folder stays as it is.

    Nothing here raises or makes the training wait, but for `close`. What fails is told once, counted in `failed`, and
    tried again. Where the address has a run that is not this one, this one goes beside it. event: writes to the run
    log, called with (kind, step, **data).
    """

    def __init__(self, folder: RunFolder, url: str, event: Callable[..., None]) -> None:
        import pyarrow.fs  # noqa: F401  (what it registers for the exit of the process must run after our end)

        folder.rotates = True
        self.url = url
        self.failed = 0
        self._folder, self._event = folder, event
        self._wanted = url
        self._sent: dict[str, Fact] = {}
        self._recall()
        self._store: Store | None = None
        self._away = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stabwatch-upload", daemon=True)
        self._thread.start()

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """Send what is left, for at most `timeout` seconds; say what could not be sent. The folder is closed by now."""
        self._closing.set()
        self._thread.join(timeout)
        left = [path.name for path in self._due()]
        if left:
            _log.warning(
                "stabwatch: %d files of the run log are not in %s (%d attempts failed); all of it is in %s.",
                len(left), shown(self.url), self.failed, self._folder.path,
            )  # fmt: skip

    def _run(self) -> None:
        pause = EVERY_SECONDS
        while True:
            last = self._closing.wait(pause)
            try:
                self._round()
            except Exception as error:
                self._failed(error)
                pause = min(2 * pause, MOST_SECONDS)
            else:
                self._answered()
                pause = EVERY_SECONDS
            if last:
                return

    def _round(self) -> None:
        if self._store is None:
            self._store = self._claimed()
        for path in self._due():
            facts = path.stat()
            self._store.write(path, path.name)
            self._sent[path.name] = [facts.st_size, facts.st_mtime_ns]
            self._remember()

    def _claimed(self) -> Store:
        """The address, or the first one beside it that has no run."""
        wanted, (parent, name) = self.url, parent_and_name(self.url)
        for number in count(2):
            store = Store(self.url)
            if self._sent or not store.is_file(META):
                break
            self.url = joined(parent, f"{name}-{number}")
        if self.url != wanted:
            text = f"{shown(wanted)} has another run; this one is sent to {shown(self.url)}."
            _log.warning("stabwatch: %s", text)
            self._event("note", None, text=text)
        return store

    def _due(self) -> list[Path]:
        """Files that have changed since they were sent. Metadata first: a reader knows the run by them; events last."""
        folder = self._folder.path
        closed = [path for path in segments_of(folder) if path != self._folder.open_segment]
        found = []
        for path in (folder / META, folder / LABELS, folder / LEASE, *closed, folder / EVENTS):
            with suppress(OSError):
                facts = path.stat()
                if self._sent.get(path.name) != [facts.st_size, facts.st_mtime_ns]:
                    found.append(path)
        return found

    def _failed(self, error: Exception) -> None:
        self.failed += 1
        if not self._away:
            self._away = True
            where = self._folder.path
            text = f"{shown(self.url)} cannot be written: {error}"
            _log.warning("stabwatch: the run log is kept in %s, and will be sent later. %s", where, text)
            self._event("error", None, probe="upload", message=text, traceback="")

    def _answered(self) -> None:
        if self._away:
            self._away = False
            self._event("note", None, text=f"{shown(self.url)} is written again; {self.failed} attempts had failed.")

    def _recall(self) -> None:
        """What an earlier attempt of the run has sent to this address."""
        known = _sent_of(self._folder.path)
        if known is not None and known[0] == self.url:
            _, self.url, self._sent = known

    def _remember(self) -> None:
        data = {"wanted": self._wanted, "url": self.url, "files": self._sent}
        with suppress(OSError), atomic_output(self._folder.path / SENT) as draft:
            draft.write_text(json.dumps(data), encoding="utf-8")


def _sent_of(folder: Path) -> tuple[str, str, dict[str, Fact]] | None:
    """The address that was asked for, the one that was used, and what was sent there; None if nothing was."""
    try:
        known = json.loads((folder / SENT).read_text(encoding="utf-8"))
        return str(known["wanted"]), str(known["url"]), {str(n): list(fact) for n, fact in known["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def sent_to(folder: Path) -> str | None:
    """The address that an earlier attempt of the run was to be sent to."""
    known = _sent_of(folder)
    return None if known is None else known[0]


def send_events(folder: Path) -> None:
    """Send the events again, if the folder was sent: an agent writes some after the training has ended.

    Raises OSError and RunLogError.
    """
    known = _sent_of(folder)
    if known is not None and (folder / EVENTS).stat().st_size != known[2].get(EVENTS, [0])[0]:
        store = Store(known[1])
        for name in (LEASE, EVENTS):
            if (folder / name).is_file():
                store.write(folder / name, name)
