"""The processes of the live sinks: started, watched, started again when they fail, and ended with the agent."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from stabwatch.agent.live_sink import BUSY, FOLDER, UNUSABLE, environment

WAITS = (2.0, 10.0, 60.0, 300.0)
"""Seconds before each start after a failure; the last one repeats."""
CLOSE_SECONDS = 15.0
"""Time for all sinks together to deliver the rest."""


class SinkProcess:
    """One live sink. failed: called with (name, what) when it fails; once for failures in a row of one reason."""

    def __init__(self, run: Path, name: str, failed: Callable[[str, str], object]) -> None:
        self.name = name
        self._run, self._failed = run, failed
        self._log = run / FOLDER / f"{name}.log"
        self._child: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self._due = 0.0
        self._said = ""

    def check(self) -> None:
        """Start the process, or start it again when it is time to. Never raises."""
        if self._child is not None and self._child.poll() is not None:
            code, self._child = self._child.returncode, None
            self._ended(code)
        if self._child is None and time.monotonic() >= self._due:
            self._start()

    def _start(self) -> None:
        command = [sys.executable, "-m", "stabwatch.agent.live_sink", str(self._run), self.name]
        try:
            self._log.parent.mkdir(exist_ok=True)
            with open(self._log, "ab") as log:
                self._child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(), start_new_session=True
                )
        except OSError as error:
            self._retry(str(error))

    def _ended(self, code: int) -> None:
        if code == 0:
            self._due = float("inf")
        elif code == UNUSABLE:
            self._due = float("inf")
            self._report(self._last_line())
        elif code == BUSY:
            self._due = time.monotonic() + WAITS[0]
        else:
            self._retry(self._last_line() if code > 0 else f"Its process was ended by signal {-code}.")

    def _retry(self, reason: str) -> None:
        self._due = time.monotonic() + WAITS[min(self._failures, len(WAITS) - 1)]
        self._failures += 1
        self._report(reason)

    def _report(self, reason: str) -> None:
        if reason != self._said:
            self._said = reason
            self._failed(self.name, reason)

    def _last_line(self) -> str:
        try:
            lines = self._log.read_bytes()[-4096:].decode(errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "It said nothing.")

    @property
    def running(self) -> bool:
        """Whether its process runs."""
        return self._child is not None and self._child.poll() is None

    def stop(self) -> None:
        """Ask it to deliver the rest and end."""
        if self.running and self._child is not None:
            self._child.terminate()

    @property
    def over(self) -> bool:
        """Whether it has delivered everything, or will never start again."""
        return self._child is None and self._due == float("inf")

    def kill(self) -> None:
        """End it now, which loses what it had not delivered."""
        if self._child is not None and self._child.poll() is None:
            self._child.kill()
            self._child.wait()
            self._report("It did not end in time and was killed; its last records were not delivered.")


class SinkProcesses:
    """The live sinks of one run."""

    def __init__(self, run: Path, names: Sequence[str], failed: Callable[[str, str], object]) -> None:
        self._sinks = [SinkProcess(run, name, failed) for name in names]

    def check(self) -> None:
        """See SinkProcess."""
        for sink in self._sinks:
            sink.check()

    def close(self, run_ended: bool) -> None:
        """End all of them, in `CLOSE_SECONDS` at most. After the end of the run each ends by itself."""
        end = time.monotonic() + CLOSE_SECONDS
        if not run_ended:
            for sink in self._sinks:
                sink.stop()
        while time.monotonic() < end and any(s.running or (run_ended and not s.over) for s in self._sinks):
            if run_ended:
                self.check()
            time.sleep(0.05)
        for sink in self._sinks:
            sink.kill()
