"""`stabwatch analyze`: what happened in a run, where, since when, why, and what to do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from stabwatch.cli.arguments import RUNS, Exit, JsonOption, PathsArgument
from stabwatch.errors import StabwatchError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from stabwatch.analysis import Analysis
    from stabwatch.analysis.verdict import LogReport

SCHEMA_VERSION = 1
"""Of the list that `--json` prints for several paths."""


def analyze(paths: PathsArgument = None, as_json: JsonOption = False) -> None:
    """Say what happened in a run, where, since when, and why.

    A run folder: replays the alert rules over its log, exactly as they run live. The log of another trainer (text,
    CSV, JSON, TensorBoard events): finds spikes, divergence, NaN and what else such a log can show.
    Exit code 0: calm; 1: a warning or a critical alert; 2: something cannot be read. With --json: see docs/analyze.md.
    """
    asked = paths or [RUNS]
    seen: list[dict[str, Any]] = []
    worst = Exit.CALM
    for path in asked:
        try:
            data, view, code = _look(path)
        except (StabwatchError, OSError) as error:
            if len(asked) == 1:
                raise
            _complain(path, error)
            seen.append({"path": str(path), "error": str(error)})
            worst = Exit.UNREADABLE
            continue
        seen.append(data)
        worst = max(worst, Exit(code))
        if not as_json:
            _show(path if len(asked) > 1 else None, view)
    if as_json:
        from stabwatch.cli.render.console import print_json

        print_json(seen[0] if len(asked) == 1 else {"schema": SCHEMA_VERSION, "kind": "list", "results": seen})
    raise typer.Exit(worst)


def _look(path: Path) -> tuple[dict[str, Any], RenderableType, int]:
    """What a path says: as data, to be shown, and the exit code."""
    folder = run_folder(path)
    if folder is not None:
        analysis, report = _run(folder)
        return analysis.to_dict(), report, analysis.exit_code
    from stabwatch.cli.logview import LogView

    seen = examined(path)
    return seen.to_dict(), LogView(seen), seen.exit_code


def examined(path: Path) -> LogReport:
    """What the log of another trainer says. Raises LogError."""
    from stabwatch.analysis.readers import read_log
    from stabwatch.analysis.verdict import examine
    from stabwatch.cli.render.progress_bar import ProgressBar
    from stabwatch.cli.render.text import clean

    with ProgressBar("reading") as bar:
        log = read_log(path, bar.reading(path))
        bar.working(f"judging {clean(path.name)}")
        return examine(log)


def run_folder(path: Path) -> Path | None:
    """The run folder meant by a path; None where it is a file, or a folder of other files: a log, then."""
    from stabwatch.errors import RunLogError
    from stabwatch.runlog import find_run

    if path.is_file():
        return None
    try:
        return find_run(path)
    except RunLogError:
        if any(entry.is_file() for entry in path.iterdir()):
            return None
        raise


def show(run: Path) -> Analysis:
    """Analyse a run folder and print the result. Raises RunLogError."""
    analysis, report = _run(run)
    _show(None, report)
    return analysis


def _run(folder: Path) -> tuple[Analysis, RenderableType]:
    from stabwatch.analysis import analyze_log
    from stabwatch.cli.render.analysis import Report
    from stabwatch.cli.render.progress_bar import ProgressBar
    from stabwatch.runlog import RunLog

    with ProgressBar("reading") as bar:
        analysis, run = analyze_log(RunLog(folder), bar)
    return analysis, Report(analysis, run)


def _show(heading: Path | None, view: RenderableType) -> None:
    from rich.rule import Rule

    from stabwatch.cli.render.console import console
    from stabwatch.cli.render.text import clean, tail

    out = console()
    if heading is not None:
        title = tail(clean(heading), out.width - 4)
        out.print(Rule(title, align="left", style="faint", characters="-" if out.options.ascii_only else "─"))
    out.print(view)


def _complain(path: Path, error: Exception) -> None:
    from stabwatch.cli.render.text import clean

    print(f"stabwatch: {clean(path)}: {clean(error)}", file=sys.stderr)
