"""Detects whether the training process is alive, and the state of its run.

On the same host, its pid and start time are checked. On another host, the process counts as dead after a long time
without records.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stabwatch.runlog.schema import Event, Meta

STALE_SECONDS = 1800.0
"""Time without records after which an unreachable process counts as dead."""
START_TOLERANCE_SECONDS = 5.0
"""Tolerance of start times, because corrections of the wall clock shift them."""


@dataclass(frozen=True)
class Gone:
    """Why the training process counts as dead."""

    detail: str


class ProcessWatch:
    """Watches one training process. `proc` is /proc, or a test folder."""

    def __init__(self, meta: Meta, *, stale_seconds: float = STALE_SECONDS, proc: Path = Path("/proc")) -> None:
        self._meta = meta
        self._proc = proc
        self._stale = stale_seconds
        self._ticks: int | None = None
        self.local = meta.host == socket.gethostname()

    def gone(self, quiet_seconds: float) -> Gone | None:
        """Why the process counts as dead, or None. quiet_seconds: time since the run log last grew."""
        if not self.local:
            if quiet_seconds < self._stale:
                return None
            return Gone(
                f"no record for {quiet_seconds:.0f} seconds, and the process on {self._meta.host} cannot be inspected"
            )
        if self._alive():
            return None
        return Gone(f"process {self._meta.pid} no longer exists")

    def _alive(self) -> bool:
        if not (self._proc / "stat").exists():
            return _alive_by_psutil(self._meta)
        try:
            text = (self._proc / str(self._meta.pid) / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False
        # The command, in parentheses, may contain anything: fields are counted from the last parenthesis.
        fields = text.rpartition(")")[2].split()
        state, ticks = fields[0], int(fields[19])
        if state in "ZX":
            return False
        if self._ticks is not None:
            return ticks == self._ticks
        started = self._boot_time() + ticks / os.sysconf("SC_CLK_TCK")
        if abs(started - self._meta.pid_started) > START_TOLERANCE_SECONDS:
            return False
        self._ticks = ticks  # from now on the comparison does not depend on the wall clock
        return True

    def _boot_time(self) -> float:
        for line in (self._proc / "stat").read_text(encoding="utf-8").splitlines():
            if line.startswith("btime "):
                return float(line.split()[1])
        return time.time() - time.monotonic()


def end_of(events: Iterable[Event]) -> Event | None:
    """The end event, unless the run was restarted after it."""
    last = None
    for event in events:
        last = event if event.kind in ("start", "end") else last
    return last if last is not None and last.kind == "end" else None


def state_of(meta: Meta, events: Iterable[Event], quiet_seconds: float) -> str:
    """'running', 'killed' if its process is gone without an end event, or the reason of the end event.

    'unknown' where the process ran on another host and has been silent for long.

    quiet_seconds: time since the run log last grew.
    """
    end = end_of(events)
    if end is not None:
        return str(end.data.get("reason", "ended"))
    process = ProcessWatch(meta)
    if process.gone(quiet_seconds) is None:
        return "running"
    return "killed" if process.local else "unknown"


def _alive_by_psutil(meta: Meta) -> bool:
    import psutil

    try:
        process = psutil.Process(meta.pid)
        same = abs(process.create_time() - meta.pid_started) <= START_TOLERANCE_SECONDS
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True  # it exists, but we may not inspect it


def killed_end(meta: Meta, events: Sequence[Event], step: int | None, last: float | None) -> Event | None:
    """The end of a run on this host whose process is gone without an end in the log; None for every other run.

    step, last: step of the last record, and its time in seconds since the epoch, which is the time of the end too.
    Whether a process on another host is alive is not known from here.
    """
    process = ProcessWatch(meta)
    if not process.local or end_of(events) is not None or (gone := process.gone(0.0)) is None:
        return None
    said = "" if last is None else f"; the last record is of {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(last))}"
    heard = max([meta.created, *(e.time for e in events)]) if last is None else last
    return Event("end", heard, step, {"reason": "killed", "detail": f"{gone.detail}{said}"})
