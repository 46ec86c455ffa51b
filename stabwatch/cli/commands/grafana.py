"""`stabwatch grafana`: write the dashboards to a Grafana server or to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stabwatch.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from stabwatch.exporters.grafana.dashboards import Page
    from stabwatch.exporters.grafana.server import Difference, Server

UrlOption = Annotated[str, typer.Option("--url", envvar="GRAFANA_URL", help="Address of Grafana.")]
TokenOption = Annotated[
    str, typer.Option("--token-file", help="File with the token. Default: the environment variable GRAFANA_TOKEN.")
]
RunsOption = Annotated[
    list[Path] | None, typer.Option("--run", help="Run folder whose plugin signals get panels too. May be repeated.")
]


def push(
    url: UrlOption = "http://localhost:3000",
    token_file: TokenOption = "",
    folder: Annotated[
        str, typer.Option("--folder", help="Title of the folder in Grafana. It is created if needed.")
    ] = "stabwatch",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace dashboards that change on the server during the push.")
    ] = False,
    run: RunsOption = None,
) -> None:
    """Create or update the dashboards in Grafana. Unchanged dashboards are not written."""
    pages = _pages(run)  # says what to install
    found = _server(url, token_file).push(pages, folder, overwrite)
    words = {"new": "created", "changed": "updated", "same": "unchanged"}
    _print(found, words)


def diff(url: UrlOption = "http://localhost:3000", token_file: TokenOption = "", run: RunsOption = None) -> None:
    """List the dashboards that a push would create or change. Exit code 1 if there are any."""
    pages = _pages(run)
    found = _server(url, token_file).differences(pages)
    _print(found, {"new": "missing", "changed": "differs", "same": "same"})
    raise typer.Exit(int(any(d.state != "same" for d in found)))


def export(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the JSON files.")] = Path("grafana"),
    run: RunsOption = None,
) -> None:
    """Write the dashboards as JSON, for provisioning or manual import."""
    pages = _pages(run)
    from stabwatch.exporters.grafana import render

    out.mkdir(parents=True, exist_ok=True)
    for page in pages:
        (out / page.file).write_text(render(page), encoding="utf-8")
        print(out / page.file)


def _pages(runs: list[Path] | None) -> tuple[Page, ...]:
    try:
        from stabwatch.exporters.grafana import with_plugins
    except ImportError as error:
        raise MissingExtraError("This needs the Grafana SDK: pip install 'stabwatch[grafana]'.") from error
    from stabwatch.runlog import RunLog, find_run

    return with_plugins(signal for run in runs or () for signal in RunLog(find_run(run)).meta.signals)


def _server(url: str, token_file: str) -> Server:
    import os

    from stabwatch.exporters.grafana.server import Server

    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--url must start with http:// or https://, not {url!r}.")
    token = Path(token_file).read_text(encoding="utf-8") if token_file else os.environ.get("GRAFANA_TOKEN", "")
    if not token.strip():
        raise ConfigError("No token: set GRAFANA_TOKEN, or give a file with --token-file.")
    return Server(url, token.strip())


def _print(found: list[Difference], words: dict[str, str]) -> None:
    for difference in found:
        print(f"{words[difference.state]:10}{difference.page.uid}  {difference.page.title}")
