"""`stabwatch serve`: all runs below a folder, on one page."""

from __future__ import annotations

import os
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
    UsernameOption,
)


def serve(
    root: Annotated[
        Path, typer.Argument(help="The folder, or its address in an object store; runs are found at any depth.")
    ] = RUNS,
    host: HostOption = "127.0.0.1",
    port: PortOption = 9478,
    certfile: CertfileOption = None,
    keyfile: KeyfileOption = None,
    username: UsernameOption = None,
    rules: RulesOption = None,
    analyse: Annotated[
        bool, typer.Option("--analyse/--no-analyse", help="Analyse ended runs that no agent has judged.")
    ] = True,
    external_url: Annotated[
        str | None, typer.Option(help="Address of the service for others, for links in notifications.")
    ] = None,
) -> None:
    """Serve all runs below a folder on one page.

    One list of runs, the page of each run, comparison, one /metrics, discovery for Prometheus (/sd). It evaluates
    the rules on runs without an agent of their own. Ends with Ctrl-C. See docs/serve.md.
    """
    from stabwatch.serve import serve_folder

    raise typer.Exit(
        serve_folder(
            root,
            host=host,
            port=port,
            certfile=certfile,
            keyfile=keyfile,
            username=username,
            password=os.environ.get(PASSWORD),
            rules=rules,
            analyse=analyse,
            external_url=external_url,
        )
    )
