"""`stabwatch doctor`: checks of this machine and of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stabwatch.cli.arguments import RUNS, Exit, JsonOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from stabwatch.cli.doctor.environment import Check

SIGNS = {"ok": ("ok", "calm"), "note": ("note", "warning"), "bad": ("BAD", "critical")}


def doctor(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]",
            help=f"Check this run as well: a run folder, or a folder of runs. Default: the newest of {RUNS}, if any.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check this machine, and which signals of a run were measured.

    Exit code 1 if a check failed: stabwatch does not work correctly here, or did not in this run.
    """
    from dataclasses import asdict

    from stabwatch.cli.doctor.environment import check_environment
    from stabwatch.cli.doctor.run import check_run
    from stabwatch.cli.render.console import console, print_json
    from stabwatch.runlog import find_run

    found = _newest() if run is None else find_run(run)
    parts = {"machine": check_environment(RUNS if found is None else found)}
    if found is not None:
        parts["run"] = check_run(found)
    if as_json:
        print_json({"schema": 1, **{part: [asdict(c) for c in checks] for part, checks in parts.items()}})
    else:
        out = console()
        for part, checks in parts.items():
            out.print(table(part if found is None or part == "machine" else f"run {found}", checks))
            out.print()
    if any(check.state == "bad" for checks in parts.values() for check in checks):
        raise typer.Exit(Exit.FIRED)


def _newest() -> Path | None:
    """The newest run here, if there is one."""
    from stabwatch.runlog import find_run, holds_run

    return find_run(RUNS) if holds_run(RUNS) else None


def table(title: str, checks: Sequence[Check]) -> Table:
    """Checks as a table; remedies below the findings."""
    from rich.table import Table
    from rich.text import Text

    from stabwatch.cli.render.text import clean

    result = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=True, header_style="title")
    result.add_column(clean(title), no_wrap=True, max_width=34)
    result.add_column("", no_wrap=True)
    result.add_column("", ratio=1)
    for check in checks:
        sign, style = SIGNS[check.state]
        text = Text(check.found)
        if check.remedy:
            text.append(f"\n→ {check.remedy}", style="faint")
        result.add_row(check.name, Text(sign, style=style), text)
    return result
