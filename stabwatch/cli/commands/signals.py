"""`stabwatch signals`: list the catalogue."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from stabwatch.cli.arguments import JsonOption

if TYPE_CHECKING:
    from rich.table import Table

HOW_OFTEN = {"always": "each step", "sampled": "sampled", "deep": "rarely"}
WIDE = 110
"""Terminal width from which scope, frequency and unit have their own columns."""
HEAD = ("signal", "per", "measured", "unit", "meaning", "source")

RunOption = Annotated[
    list[Path] | None, typer.Option("--run", help="Run folder whose plugin signals are listed too. May be repeated.")
]
MarkdownOption = Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")]


class Row(NamedTuple):
    """A signal in the table."""

    name: str
    scope: str
    measured: str
    unit: str
    help: str
    source: str


def signals(run: RunOption = None, as_json: JsonOption = False, markdown: MarkdownOption = False) -> None:
    """List what stabwatch measures.

    For each signal: how often it is measured, its unit, its meaning, and the paper or code it comes from. Derived
    signals are computed by the agent from the measured ones; the alert rules compare them.
    """
    from stabwatch.alerts import DERIVED
    from stabwatch.cli.render.console import console, print_json
    from stabwatch.signals import CATALOGUE

    own = _plugins(run or [])
    rows = [*(Row(s.name, s.scope, HOW_OFTEN[s.tier], s.unit, s.help, s.source) for s in CATALOGUE), *map(_row, own)]
    rows += [Row(d.name, d.scope, "derived", d.unit, d.help, "") for d in DERIVED]
    if as_json:
        from dataclasses import asdict

        measured = [{**asdict(s), "metric": s.metric} for s in CATALOGUE]
        measured += [{**s, "metric": f"stabwatch_{s['name']}"} for s in own]
        derived = [{**asdict(d), "metric": d.metric} for d in DERIVED]
        print_json({"schema": 1, "signals": measured, "derived": derived})
    elif markdown:
        print(_markdown(rows))
    else:
        out = console()
        out.print(table(rows, wide=out.width >= WIDE))


def _plugins(runs: Iterable[Path]) -> list[dict[str, Any]]:
    """The signals that the runs declare and that are not in the catalogue, each once."""
    from stabwatch.runlog import RunLog, find_run
    from stabwatch.signals import CATALOGUE

    found = (signal for run in runs for signal in RunLog(find_run(run)).meta.signals)
    return list({s["name"]: s for s in found if "name" in s and s["name"] not in CATALOGUE}.values())


def _row(signal: dict[str, Any]) -> Row:
    """A row from a declaration in meta.json."""
    measured = HOW_OFTEN.get(signal.get("tier", ""), "")
    others = (str(signal.get(name, "")) for name in ("unit", "help", "source"))
    return Row(str(signal["name"]), str(signal.get("scope", "")), measured, *others)


def _markdown(rows: Iterable[Row]) -> str:
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    cells = (tuple(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows)
    return "\n".join([*lines, *(f"| `stabwatch_{name}` | {' | '.join(rest)} |" for name, *rest in cells)])


def table(rows: Iterable[Row], wide: bool) -> Table:
    """The catalogue as a table."""
    from rich.table import Table
    from rich.text import Text

    from stabwatch.cli.render.text import clean

    result = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="title")
    for heading in HEAD[:4] if wide else HEAD[:1]:
        result.add_column(heading, no_wrap=True)
    result.add_column("meaning and source", ratio=1)
    for name, scope, measured, unit, help, source in (Row(*map(clean, row)) for row in rows):
        meaning = Text(help)
        if not wide:
            meaning.append(f" Per {scope}, {measured}{'' if unit == '1' else f', in {unit}'}.", style="faint")
        if source:
            meaning.append(f" {source}", style="faint")
        result.add_row(name, *((scope, measured, unit) if wide else ()), meaning)
    return result
