"""A progress bar on stderr for what takes more than two seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

    from stabwatch.analysis.source import Source

PATIENCE_SECONDS = 2.0


class LogBar:
    """Call it with a run log that is being read, or `at`. Shows nothing before two seconds, or where nobody looks."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._began = time.monotonic()
        self._shown: Progress | None = None

    def __enter__(self) -> LogBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown is not None:
            self._shown.stop()

    def __call__(self, log: Source) -> None:
        """Show how far the reading of a run log is."""
        self.at(log.meta.run, log.position, log.size)

    def at(self, name: str, position: int, size: int) -> None:
        """Show how many bytes of what were read."""
        if self._shown is None and time.monotonic() - self._began > PATIENCE_SECONDS and sys.stderr.isatty():
            self._start()
        if self._shown is not None:
            from stabwatch.cli.text import clean

            about = f"{self._title} {clean(name)}"
            self._shown.update(self._task, description=about, completed=position, total=size)

    def _start(self) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        from stabwatch.cli.console import console

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._shown = Progress(*columns, console=console(sys.stderr), transient=True)
        self._task = self._shown.add_task(self._title)
        self._shown.start()
