"""`stabwatch export`: a run log in the form that another tool reads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from stabwatch.cli.arguments import RunArgument
from stabwatch.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from stabwatch.runlog.source import Source

ENDINGS = {"openmetrics": ".om", "parquet": ".parquet", "csv": ".csv", "tensorboard": "-tensorboard"}


def export(
    run: RunArgument,
    openmetrics: Annotated[
        bool, typer.Option("--openmetrics", help="Text for `promtool tsdb create-blocks-from openmetrics`.")
    ] = False,
    parquet: Annotated[bool, typer.Option("--parquet", help="A Parquet file.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="A CSV file.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="A folder with an event file.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Where to. Default: named after the run, here. -: standard output."),
    ] = None,
    wide: Annotated[
        bool, typer.Option("--wide", help="CSV, Parquet: a column per series, not a row per value.")
    ] = False,
    interval: Annotated[
        float | None,
        typer.Option("--interval", min=0.001, help="OpenMetrics: seconds between scrapes. Default: 15, or less."),
    ] = None,
) -> None:
    """Write a run for Prometheus, pandas, spreadsheets or TensorBoard.

    OpenMetrics holds what Prometheus would hold if it had scraped the run's agent all along: the same names and labels.
    The file appears whole or not at all.
    """
    from stabwatch.analysis.sources import open_sources
    from stabwatch.cli.render.progress_bar import ProgressBar
    from stabwatch.runlog import find_run, holds_run

    chosen = {"openmetrics": openmetrics, "parquet": parquet, "csv": csv, "tensorboard": tensorboard}
    form = _only(chosen)
    if wide and form not in ("parquet", "csv"):
        raise ConfigError(f"--wide goes with --csv and --parquet, not with --{form}.")
    if interval is not None and form != "openmetrics":
        raise ConfigError(f"--interval goes with --openmetrics, not with --{form}.")
    if str(out) == "-" and form in ("parquet", "tensorboard"):
        raise ConfigError(f"--{form} cannot go to standard output: give a path with -o.")
    with ProgressBar("exporting") as bar:
        found = open_sources([find_run(run) if holds_run(run) else run], bar.reading)
        if len(found) > 1:
            raise ConfigError(f"{run} holds {len(found)} runs: export takes one.")
        (log,) = found
        target = out or Path(log.path.resolve().name + ENDINGS[form])
        written, what = _write(log, form, target, wide, interval, bar)
    if not log.position:
        print(f"stabwatch: {log.path} has no records yet.", file=sys.stderr)
    print(f"{target}: {written:,} {what}", file=sys.stderr)


def _only(chosen: dict[str, bool]) -> str:
    names = [name for name, wanted in chosen.items() if wanted]
    if len(names) != 1:
        raise ConfigError(f"Choose one of {', '.join(f'--{name}' for name in chosen)}.")
    return names[0]


def _write(
    log: Source, form: str, target: Path, wide: bool, interval: float | None, bar: Callable[[Source], None]
) -> tuple[int, str]:
    from stabwatch.runlog.atomic import atomic_output

    if form == "openmetrics":
        from stabwatch.exporters.openmetrics import write_openmetrics

        return _stream(target, lambda file: write_openmetrics(log, file, interval, progress=bar)), "samples"
    if form == "csv":
        from stabwatch.exporters.tables import write_csv

        return _stream(target, lambda file: write_csv(log, file, wide, bar)), "rows"
    with atomic_output(target) as draft:
        if form == "parquet":
            from stabwatch.exporters.tables import write_parquet

            return write_parquet(log, draft, wide, bar), "rows"
        from stabwatch.exporters.tensorboard import write_tensorboard

        return write_tensorboard(log, draft, bar), "values"


def _stream(target: Path, write: Callable[[BinaryIO], int]) -> int:
    from stabwatch.runlog.atomic import atomic_output

    if str(target) == "-":
        return write(sys.stdout.buffer)
    with atomic_output(target) as draft, open(draft, "wb") as file:
        return write(file)
