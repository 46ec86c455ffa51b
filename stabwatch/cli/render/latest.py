"""The latest runs, as `stabwatch` alone shows them."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Group
from rich.text import Text

from stabwatch.analysis.query.run_table import UNREADABLE, RunRow, row_of
from stabwatch.cli.render.layout import new_table
from stabwatch.cli.render.text import clean, duration, number
from stabwatch.runlog import find_runs

MOST = 10
"""Most runs that are shown."""
_STYLES = {"running": "info", "finished": "calm", "killed": "critical", "exception": "critical", UNREADABLE: "warning"}


def latest(root: Path, now: float | None = None) -> Group:
    """A table of the newest runs in a folder. Raises RunLogError."""
    found = find_runs([root])[::-1]
    now = time.time() if now is None else now
    table = new_table("run", "state", "began", "step", "loss", "alerts", "name, tags")
    for path in found[:MOST]:
        row = row_of(path, verdict=False)
        table.add_row(
            Text(clean(row.run), overflow="ellipsis", no_wrap=True),
            Text(clean(row.state), style=_STYLES.get(row.state, "warning")),
            "-" if row.created is None else f"{duration(now - row.created)} ago",
            "-" if row.last_step is None else f"{row.last_step:,}",
            number(row.last_loss),
            _alerts(row),
            Text(
                clean(" ".join(filter(None, [row.name, *(f"#{tag}" for tag in row.tags or ())]))), overflow="ellipsis"
            ),
        )
    more = f", the newest {MOST} of {len(found)}" if len(found) > MOST else ""
    title = Text(f"Runs in {clean(root)}{more}", style="title")
    return Group(title, table, Text(), Text("stabwatch analyze RUN: what happened. stabwatch --help: all commands."))


def _alerts(row: RunRow) -> Text:
    """The rules that an agent saw fire, the worst first."""
    if not row.alerts:
        return Text("-")
    more = f" +{len(row.alerts) - 1}" if len(row.alerts) > 1 else ""
    severity, _, rule = row.alerts[0].partition(" ")
    return Text(clean(rule) + more, style=severity if severity in ("critical", "warning", "info") else "")
