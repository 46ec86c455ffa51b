"""A progress bar on stderr for what takes more than two seconds."""

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
    """A bar around what may take long. Shows nothing before two seconds, or where nobody looks.

    Call it with a run log that is being read; `reading` gives what a reader of other logs calls. What tells of no
    progress has a bar too, that only moves.
    """

    def __init__(self, title: str) -> None:
        self._about = title
        self._title = title
        self._done: tuple[int, int | None] = (0, None)
        self._shown: Progress | None = None
        self._turn = threading.Lock()
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
        with self._turn:
            if self._shown is not None:
                self._shown.stop()
            self._shown = None

    def __call__(self, log: Source) -> None:
        """Show how far the reading of a run log is."""
        self._at(log.meta.run, log.position, log.size)

    def reading(self, path: Path) -> Callable[[int, int], None]:
        """Show how many bytes of a file were read, of how many."""
        return lambda position, size: self._at(path.name, position, size)

    def working(self, title: str) -> None:
        """Show that something else goes on, for which there is no measure."""
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
        """Called by the timer, in a thread of its own."""
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        from stabwatch.cli.render.console import console

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with self._turn:
            if self._timer.finished.is_set():  # what it was for has ended
                return
            progress = Progress(*columns, console=console(sys.stderr), transient=True)
            self._task = progress.add_task(self._about, completed=self._done[0], total=self._done[1])
            progress.start()
            self._shown = progress
