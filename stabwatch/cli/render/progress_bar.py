"""A progress bar on stderr for operations of more than two seconds."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

    from stabwatch.runlog.source import Source

PATIENCE_SECONDS = 2.0


class ProgressBar:
    """A progress bar that appears after two seconds, and only on a terminal.

    Call it with a run log that is being read. `reading` returns a callback for readers of other logs. An operation
    without known progress has a pulsing bar.
    """

    def __init__(self, title: str) -> None:
        self._about = title
        self._title = title
        self._done: tuple[int, int | None] = (0, None)
        self._shown: Progress | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(PATIENCE_SECONDS, self._show)
        self._timer.daemon = True

    def __enter__(self) -> ProgressBar:
        if sys.stderr.isatty():
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        with self._lock:
            if self._shown is not None:
                self._shown.stop()
            self._shown = None

    def __call__(self, log: Source) -> None:
        """Show how much of a run log has been read."""
        self._at(log.meta.run, log.position, log.size)

    def reading(self, path: Path) -> Callable[[int, int], None]:
        """Return a callback that shows the bytes of a file read so far, and in total."""
        return lambda position, size: self._at(path.name, position, size)

    def counting(self, done: int, of: int) -> None:
        """Show how many of several runs are done."""
        self._about, self._done = f"{self._title} {done:,} of {of:,} runs", (done, of)
        self._update()

    def working(self, title: str) -> None:
        """Show an operation without known progress."""
        self._about, self._done = title, (0, None)
        self._update()

    def _at(self, name: str, position: int, size: int) -> None:
        from stabwatch.cli.render.text import clean

        self._about, self._done = f"{self._title} {clean(name)}", (position, size)
        self._update()

    def _update(self) -> None:
        shown = self._shown
        if shown is not None:
            shown.update(self._task, description=self._about, completed=self._done[0], total=self._done[1])

    def _show(self) -> None:
        """Called by the timer, in its thread."""
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        from stabwatch.cli.render.console import console

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with self._lock:
            if self._timer.finished.is_set():  # the operation has ended
                return
            progress = Progress(*columns, console=console(sys.stderr), transient=True)
            self._task = progress.add_task(self._about, completed=self._done[0], total=self._done[1])
            progress.start()
            self._shown = progress
