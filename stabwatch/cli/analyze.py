"""`stabwatch analyze`: what happened in a run, where, since when, why, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from stabwatch.cli.arguments import RUNS, JsonOption, RunArgument

if TYPE_CHECKING:
    from stabwatch.analysis import Analysis


def analyze(run: RunArgument = RUNS, as_json: JsonOption = False) -> None:
    """Say what happened in a run, where, since when, and why.

    Replays the alert rules over the run's log, exactly as they run live. Exit code 0: calm; 1: a warning or a
    critical alert fired; 2: the log cannot be read. With --json: `stabwatch.analysis.Analysis.to_dict()`, whose shape
    is numbered by its key `schema`; numbers that are not finite are null.
    """
    from stabwatch.runlog import find_run

    raise typer.Exit(show(find_run(run), as_json).exit_code)


def show(run: Path, as_json: bool = False) -> Analysis:
    """Analyse a run folder and print the result. Raises RunLogError."""
    from stabwatch.analysis import analyze_run
    from stabwatch.cli.console import console, print_json
    from stabwatch.runlog import read_run

    log = read_run(run)
    analysis = analyze_run(log)
    if as_json:
        print_json(analysis.to_dict())
    else:
        from stabwatch.cli.report import Report

        console().print(Report(analysis, log))
    return analysis
