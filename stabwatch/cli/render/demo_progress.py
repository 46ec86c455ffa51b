"""Output of `stabwatch demo` during training: addresses, progress, alerts."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from stabwatch.cli.render.text import clean, duration, number
from stabwatch.runlog import Event, RunLog

if TYPE_CHECKING:
    from types import TracebackType

    from stabwatch.watch import Watch

PLAIN_LINES = 10
"""Number of progress lines per run when the output is not a terminal."""
POLL_SECONDS = 0.5


class Progress:
    """Callbacks for `stabwatch.demo.train`: a progress bar on a terminal, occasional lines elsewhere."""

    def __init__(self, console: Console, steps: int) -> None:
        self.page: str | None = None
        self._console = console
        self._steps = steps
        self._log: RunLog | None = None
        self._polled = 0.0
        self._started = time.monotonic()
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Progress:
        self._bar.start()
        self._task = self._bar.add_task("training", total=self._steps)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def start(self, watch: Watch) -> None:
        """Print the run folder and the addresses."""
        self._started = time.monotonic()
        self._item("run log", str(watch.run_dir))
        self._item("terminal", f"stabwatch top {watch.run_dir}")
        if watch.config.agent:
            self.page = watch.wait_for_agent()
            if self.page is None:
                self._item("agent", "not available: see agent.log in the run folder", "warning")
            else:
                self._item("live page", self.page)
                self._item("metrics", f"{self.page.rstrip('/')}/metrics")
        else:
            self._item("agent", "off; alerts are shown in the analysis at the end")
        self._log = RunLog(watch.run_dir)

    def _item(self, name: str, text: str, style: str = "none") -> None:
        self._console.print(Text(f"{name:<10}", style="faint") + Text(text, style=style), soft_wrap=True)

    def step(self, step: int, loss: float) -> None:
        """After a training step."""
        self._bar.update(self._task, completed=step + 1, description=f"training, loss {number(loss)}")
        if not self._console.is_terminal and (step + 1) % max(1, self._steps // PLAIN_LINES) == 0:
            taken = duration(time.monotonic() - self._started)
            self._console.print(f"step {step + 1} of {self._steps}  loss {number(loss)}  {taken}")
        if time.monotonic() - self._polled > POLL_SECONDS:
            self.alerts()

    def alerts(self) -> None:
        """Print the alerts since the last call, one line per rule."""
        self._polled = time.monotonic()
        fired: dict[tuple[str, str], list[Event]] = {}
        for event in self._log.poll_events() if self._log is not None else ():
            if event.kind == "alert" and event.data.get("state") == "firing":
                kind = (str(event.data.get("severity")), clean(event.data.get("rule")))
                fired.setdefault(kind, []).append(event)
        for (severity, rule), events in fired.items():
            line = Text(f"step {events[0].step}: ").append(severity, style=severity).append(f" {rule}", style="title")
            line.append(f": {clean(events[0].data.get('description') or '')}")
            line.append(f" And {len(events) - 1} more." if len(events) > 1 else "")
            self._console.print(line, soft_wrap=True)
