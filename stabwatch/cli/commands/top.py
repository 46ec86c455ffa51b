"""`stabwatch top`: a live view in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer

from stabwatch.cli.arguments import RUNS, RunArgument


def top(
    run: RunArgument = RUNS,
    once: Annotated[bool, typer.Option("--once", help="Print the view once and exit.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds between updates.", min=0.1, max=60)] = 0.5,
) -> None:
    """Watch a run live in the terminal.

    It reads the run log itself, so no agent is needed. Exit with Ctrl-C. Without a terminal it prints the view once.
    """
    import time

    from stabwatch.cli.render.console import console
    from stabwatch.cli.render.live import TopView
    from stabwatch.cli.render.monitor import Monitor
    from stabwatch.runlog import find_run

    monitor = Monitor(find_run(run))
    out = console()

    def view(height: int) -> TopView:
        now = time.time()
        monitor.poll(now)
        return TopView(monitor.view(now), height)

    if once or not out.is_terminal:
        out.print(view(out.height if out.is_terminal else 1000))
        return

    from rich.live import Live

    with Live(view(out.height), console=out, screen=True, auto_refresh=False) as live:
        while True:
            live.update(view(out.height), refresh=True)
            time.sleep(interval)
