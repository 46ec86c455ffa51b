"""`stabwatch analyze`: what happened in a run, where, since when, why, and what to do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from stabwatch.cli.arguments import RUNS, Exit, ExplainOption, JsonOption, PathsArgument
from stabwatch.errors import LogError, StabwatchError

if TYPE_CHECKING:
    from stabwatch.analysis import Analysis


def analyze(paths: PathsArgument = None, as_json: JsonOption = False, explain: ExplainOption = None) -> None:
    """Show what happened in a run, where, since when, and why.

    Reads a run folder, or the log of another trainer (text, CSV, JSON, TensorBoard events). The alert rules run over
    its records as in a live run, and detectors read the whole curve in hindsight.
    Exit code 0: calm; 1: a warning or a critical incident; 2: something cannot be read. --json: see docs/json.md.
    """
    if explain is not None:
        _explain(paths or [], explain)
        return
    asked = paths or [RUNS]
    if len(asked) > 1:
        from stabwatch.runlog import beside_targets

        asked = beside_targets(asked)
    found: list[Analysis] = []
    unreadable: list[tuple[Path, str]] = []
    for path in asked:
        try:
            runs = analyses(path)
        except (StabwatchError, OSError) as error:
            if len(asked) == 1:
                raise
            _report_unreadable(path, error)
            unreadable.append((path, str(error)))
            continue
        found += runs
        if not as_json:
            _show(path if len(asked) > 1 else None, runs)
    if as_json:
        from stabwatch.analysis.analyze import document
        from stabwatch.cli.render.console import print_json

        print_json(document(found, unreadable))
    if unreadable:
        raise typer.Exit(Exit.UNREADABLE)
    raise typer.Exit(max((Exit(run.exit_code) for run in found), default=Exit.CALM))


def _explain(paths: list[Path], line: str) -> None:
    """Print how one line was read. Raises StabwatchError."""
    from stabwatch.analysis.readers.explain import explain, explain_text
    from stabwatch.cli.render.text import clean

    if len(paths) > 1:
        raise LogError("--explain takes one PATH.")
    if paths and not line.strip().isdigit():
        raise LogError("--explain with a PATH takes the number of a line; without a PATH, the text of one.")
    for text in explain(paths[0], int(line)) if paths else explain_text(line):
        print(clean(text))


def analyses(path: Path) -> list[Analysis]:
    """Analyse a run folder, the newest one in a folder, or the runs of a log. Raises StabwatchError."""
    from stabwatch.analysis import analyze_source, open_source
    from stabwatch.cli.render.progress_bar import ProgressBar
    from stabwatch.cli.render.text import clean

    with ProgressBar("reading") as bar:
        sources = open_source(path, bar.reading(path))
        bar.working(f"analysing {clean(path.name)}")
        return [analyze_source(source, progress=bar) for source in sources]


def show(run: Path) -> Analysis:
    """Analyse a run folder and print the result. Raises RunLogError."""
    (analysis,) = analyses(run)
    _show(None, [analysis])
    return analysis


def _show(heading: Path | None, runs: list[Analysis]) -> None:
    from rich.rule import Rule

    from stabwatch.cli.render.analysis import Report
    from stabwatch.cli.render.console import console
    from stabwatch.cli.render.text import clean, tail

    out = console()
    if heading is not None:
        title = tail(clean(heading), out.width - 4)
        out.print(Rule(title, align="left", style="faint", characters="-" if out.options.ascii_only else "─"))
    out.print(Report(runs))


def _report_unreadable(path: Path, error: Exception) -> None:
    from stabwatch.cli.render.text import clean

    print(f"stabwatch: {clean(path)}: {clean(error)}", file=sys.stderr)
