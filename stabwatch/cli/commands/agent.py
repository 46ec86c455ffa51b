"""`stabwatch agent`: serve a run to Prometheus and to a browser."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from stabwatch.cli.arguments import (
    PASSWORD,
    RUNS,
    CertfileOption,
    HostOption,
    KeyfileOption,
    PortOption,
    RulesOption,
    RunArgument,
    UsernameOption,
)


class Cardinality(str, Enum):
    """Granularity of the export."""

    RUN = "run"
    BLOCK = "block"
    LAYER = "layer"


def agent(
    run: RunArgument = RUNS,
    host: HostOption = "127.0.0.1",
    port: PortOption = 9478,
    linger: Annotated[float, typer.Option(help="Seconds to keep serving after the run has ended.", min=0)] = 60.0,
    file_sd: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the Prometheus target file, by which a server finds the run. Default: RUN/../targets."
        ),
    ] = None,
    certfile: CertfileOption = None,
    keyfile: KeyfileOption = None,
    username: UsernameOption = None,
    rules: RulesOption = None,
    cardinality: Annotated[
        Cardinality, typer.Option(help="Series on /metrics: one per layer, per block, or per run.")
    ] = Cardinality.LAYER,
    worst: Annotated[
        int, typer.Option(help="With --cardinality run or block: layers of each signal to export in addition.", min=0)
    ] = 5,
    max_series: Annotated[
        int, typer.Option(help="Limit of series. Those above it are left out and counted.", min=1)
    ] = 50_000,
    sink: Annotated[
        list[str] | None,
        typer.Option(help="A live sink, such as otlp, wandb or mlflow (exporters/README.md); may be repeated."),
    ] = None,
    external_url: Annotated[
        str | None, typer.Option(help="Address of the page for others, for links in notifications.")
    ] = None,
    summary: Annotated[bool, typer.Option("--summary", help="Notify of the end of the run.")] = False,
) -> None:
    """Serve a run to Prometheus and to a browser.

    Serves /metrics for Prometheus and a live page at /, and writes alerts to the run's events. Ends --linger seconds
    after the end of the run, or with Ctrl-C.
    """
    from stabwatch.agent import serve
    from stabwatch.runlog import RunLog, find_run

    log = RunLog(find_run(run))  # `serve` waits for a run to appear; the command fails at once
    raise typer.Exit(
        serve(
            log.path,
            host=host,
            port=port,
            linger=linger,
            file_sd=file_sd,
            certfile=certfile,
            keyfile=keyfile,
            username=username,
            password=os.environ.get(PASSWORD),
            rules=rules,
            cardinality=cardinality.value,
            worst=worst,
            max_series=max_series,
            sinks=sink or (),
            external_url=external_url,
            summary=summary,
        )
    )
