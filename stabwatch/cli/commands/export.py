"""`stabwatch export`: convert a run log for other tools."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stabwatch.cli.arguments import RunArgument
from stabwatch.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from stabwatch.exporters.sink import SinkDeclaration
    from stabwatch.runlog.source import Source


def export(
    run: RunArgument,
    openmetrics: Annotated[
        bool, typer.Option("--openmetrics", help="Text for `promtool tsdb create-blocks-from openmetrics`.")
    ] = False,
    parquet: Annotated[bool, typer.Option("--parquet", help="A Parquet file.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="A CSV file.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="A folder with a TensorBoard event file.")] = False,
    otlp: Annotated[
        bool, typer.Option("--otlp", help="OpenTelemetry over HTTP, to OTEL_EXPORTER_OTLP_ENDPOINT.")
    ] = False,
    pushgateway: Annotated[
        bool, typer.Option("--pushgateway", help="The last values, to the Pushgateway at STABWATCH_PUSHGATEWAY.")
    ] = False,
    wandb: Annotated[bool, typer.Option("--wandb", help="A run of Weights & Biases.")] = False,
    mlflow: Annotated[bool, typer.Option("--mlflow", help="A run of MLflow, at MLFLOW_TRACKING_URI.")] = False,
    trackio: Annotated[bool, typer.Option("--trackio", help="A run of trackio.")] = False,
    sink: Annotated[
        str, typer.Option("--sink", help="A sink of an installed package (entry-point group stabwatch.sinks).")
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Where to write. Default: named after the run, here. -: standard output."),
    ] = None,
    wide: Annotated[
        bool, typer.Option("--wide", help="CSV, Parquet: one column per series, not one row per value.")
    ] = False,
    interval: Annotated[
        float | None,
        typer.Option("--interval", min=0.001, help="OpenMetrics, OTLP: seconds between scrapes. Default: 15, or less."),
    ] = None,
) -> None:
    """Write a run for Prometheus, pandas, spreadsheets or a tracker.

    OpenMetrics has what Prometheus would have stored by scraping the agent during the run: the same names and
    labels. The file is written completely or not at all.
    """
    from stabwatch.analysis.sources import open_sources
    from stabwatch.cli.render.progress_bar import ProgressBar
    from stabwatch.runlog import find_run, holds_run

    chosen = {
        "openmetrics": openmetrics, "parquet": parquet, "csv": csv, "tensorboard": tensorboard, "otlp": otlp,
        "pushgateway": pushgateway, "wandb": wandb, "mlflow": mlflow, "trackio": trackio,
    }  # fmt: skip
    declaration = _only(chosen, sink)
    options = _options(declaration, {"wide": wide or None, "interval": interval})
    _check_target(declaration, out)
    with ProgressBar("exporting") as bar:
        found = open_sources([find_run(run) if holds_run(run) else run], bar.reading)
        if len(found) > 1:
            raise ConfigError(f"{run} has {len(found)} runs: export takes one.")
        (log,) = found
        target = out or Path(log.path.resolve().name + declaration.suffix)
        written = _write(log, declaration, target, options, bar)
    if not log.position:
        print(f"stabwatch: {log.path} has no records yet.", file=sys.stderr)
    where = declaration.name if declaration.target == "none" else target
    print(f"{where}: {written:,} {declaration.unit}", file=sys.stderr)


def _only(chosen: dict[str, bool], sink: str) -> SinkDeclaration:
    from stabwatch.exporters.registry import SINKS, find_sink

    names = [name for name, wanted in chosen.items() if wanted]
    if len(names) + bool(sink) != 1:
        raise ConfigError(f"Choose one of {', '.join(f'--{name}' for name in chosen)}, --sink.")
    return SINKS[names[0]] if names else find_sink(sink)


def _options(declaration: SinkDeclaration, given: dict[str, Any]) -> dict[str, Any]:
    from stabwatch.exporters.registry import SINKS

    set_here = {name: value for name, value in given.items() if value is not None}
    for name in set_here:
        if name not in declaration.options:
            takers = " and ".join(sorted(f"--{s.name}" for s in SINKS.values() if name in s.options))
            raise ConfigError(f"--{name} goes with {takers}, not with {_flag(declaration)}.")
    return set_here


def _check_target(declaration: SinkDeclaration, out: Path | None) -> None:
    if str(out) == "-" and declaration.target == "path":
        raise ConfigError(f"{_flag(declaration)} cannot write to standard output: give a path with -o.")
    if out is not None and declaration.target == "none":
        raise ConfigError(f"{_flag(declaration)} writes no file: leave out -o.")


def _flag(declaration: SinkDeclaration) -> str:
    from stabwatch.exporters.registry import SINKS

    return f"--{declaration.name}" if declaration.name in SINKS else f"--sink {declaration.name}"


def _write(
    log: Source, declaration: SinkDeclaration, target: Path, options: dict[str, Any], bar: Callable[[Source], None]
) -> int:
    from stabwatch.exporters.sink import make_sink, write_run
    from stabwatch.runlog.atomic import atomic_output

    def write(*where: Any) -> int:
        return write_run(log, make_sink(declaration, *where, **options), bar)

    if declaration.target == "none":
        return write()
    if str(target) == "-":
        return write(sys.stdout.buffer)
    with atomic_output(target) as draft:
        if declaration.target == "path":
            return write(draft)
        with open(draft, "wb") as file:
            return write(file)
