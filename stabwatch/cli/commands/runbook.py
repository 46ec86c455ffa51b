"""`stabwatch runbook`: what an alert means and what to do, without a network."""

from __future__ import annotations

from typing import Annotated

import typer


def runbook(
    name: Annotated[str, typer.Argument(help="A rule or a cause. Default: list the names.")] = "",
) -> None:
    """Show a runbook: what an alert means, and what to do.

    Exit code 2: there is none of that name.
    """
    from stabwatch.alerts.runbooks import runbook as text_of
    from stabwatch.alerts.runbooks import runbook_names

    if not name:
        print(*runbook_names(), sep="\n")
        return
    text = text_of(name)
    from stabwatch.cli.render.console import console

    out = console()
    if not out.is_terminal:
        print(text)
        return
    from rich.markdown import Markdown

    out.print(Markdown(text))
