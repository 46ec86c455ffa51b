"""`stabwatch report`: an analysis as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    path: Annotated[Path, typer.Argument(help="A run folder, or the log of another trainer.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The file to write.")] = Path("report.html"),
) -> None:
    """Write what happened in a run as one HTML file that works offline.

    Exit code 0: written; 2: something cannot be read or written.
    """
    from stabwatch.errors import StabwatchError
    from stabwatch.runlog.atomic import atomic_output

    if out.is_dir():
        raise StabwatchError(f"{out} is a folder; name a file with -o.")
    text = _page(path)
    with atomic_output(out) as draft:
        draft.write_text(text, encoding="utf-8")
    print(f"Wrote {out}")


def _page(path: Path) -> str:
    from stabwatch.cli.commands.analyze import analyses
    from stabwatch.cli.render.html.pages import page

    return page(analyses(path))
