"""`stabwatch agent`: serve a run to Prometheus and to a browser."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from stabwatch.cli.arguments import RUNS, RulesOption, RunArgument


class Cardinality(str, Enum):
    """How finely a run is exported."""

    RUN = "run"
    BLOCK = "block"
    LAYER = "layer"


PASSWORD = "STABWATCH_PASSWORD"
"""Environment variable with the password: an option would show it to everybody who lists processes."""


def agent(
    run: RunArgument = RUNS,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 opens it to the network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; the next free one if taken, 0 for any.", min=0, max=65535)] = 9478,
    linger: Annotated[float, typer.Option(help="Seconds to go on serving after the run has ended.", min=0)] = 60.0,
    file_sd: Annotated[
        Path | None,
        typer.Option(help="Folder for the Prometheus target file, by which a server finds the run [RUN/../targets]."),
    ] = None,
    certfile: Annotated[Path | None, typer.Option(help="TLS certificate (PEM); needs --keyfile.")] = None,
    keyfile: Annotated[Path | None, typer.Option(help="Private key of the certificate (PEM).")] = None,
    username: Annotated[
        str | None, typer.Option(help=f"Ask for this user, and for the password in the environment's {PASSWORD}.")
    ] = None,
    rules: RulesOption = None,
    cardinality: Annotated[
        Cardinality, typer.Option(help="Series on /metrics: one per layer, per block, or for the run.")
    ] = Cardinality.LAYER,
    worst: Annotated[int, typer.Option(help="At run and block: layers of each signal shown besides.", min=0)] = 5,
    max_series: Annotated[int, typer.Option(help="What goes beyond is left out and counted.", min=1)] = 20_000,
) -> None:
    """Serve a run to Prometheus and to a browser.

    /metrics for Prometheus, a live page at /, and alerts into the run's own events. Ends when the run has ended and
    --linger has passed, or with Ctrl-C.
    """
    from stabwatch.agent import serve
    from stabwatch.runlog import RunLog, find_run

    log = RunLog(find_run(run))  # `serve` waits for a run that is about to appear; a person wants to know at once
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
            password=os.environ.get(PASSWORD) if username else None,
            rules=rules,
            cardinality=cardinality.value,
            worst=worst,
            max_series=max_series,
        )
    )
