"""`stabwatch top`: a live view in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer

from stabwatch.cli.arguments import RUNS, RunArgument


def top(
    run: RunArgument = RUNS,
    once: Annotated[bool, typer.Option("--once", help="Print one picture and exit.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds between two pictures.", min=0.1, max=60)] = 0.5,
) -> None:
    """Watch a run live in the terminal.

    Reads the run's log itself: no agent is needed. Ctrl-C leaves. Without a terminal it prints one picture.
    """
    import time

    from stabwatch.cli.render.console import console
    from stabwatch.cli.render.live import FrameView
    from stabwatch.cli.render.monitor import Monitor
    from stabwatch.runlog import find_run

    monitor = Monitor(find_run(run))
    out = console()

    def view(height: int) -> FrameView:
        now = time.time()
        monitor.poll(now)
        return FrameView(monitor.frame(now), height)

    if once or not out.is_terminal:
        out.print(view(out.height if out.is_terminal else 1000))
        return

    from rich.live import Live

    with Live(view(out.height), console=out, screen=True, auto_refresh=False) as live:
        while True:
            live.update(view(out.height), refresh=True)
            time.sleep(interval)
