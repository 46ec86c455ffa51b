"""`stabwatch signals`: the catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stabwatch.cli.arguments import JsonOption

if TYPE_CHECKING:
    from rich.table import Table

HOW_OFTEN = {"always": "each step", "sampled": "sampled", "deep": "rarely"}
WIDE = 110
"""Columns from which per, measured and unit have columns of their own."""


def signals(as_json: JsonOption = False) -> None:
    """List what stabwatch measures.

    For each signal: how often it is measured, its unit, its meaning, and the paper or code it comes from. Derived
    signals are computed by the agent from the measured ones; the alert rules compare them.
    """
    from dataclasses import asdict

    from stabwatch.alerts import DERIVED
    from stabwatch.cli.console import console, print_json
    from stabwatch.signals import CATALOGUE

    if as_json:
        measured = [{**asdict(s), "metric": s.metric} for s in CATALOGUE]
        derived = [{**asdict(d), "metric": d.metric} for d in DERIVED]
        print_json({"schema": 1, "signals": measured, "derived": derived})
    else:
        out = console()
        out.print(table(wide=out.width >= WIDE))


def table(wide: bool) -> Table:
    """The catalogue as a table."""
    from rich.table import Table
    from rich.text import Text

    from stabwatch.alerts import DERIVED
    from stabwatch.signals import CATALOGUE

    result = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="title")
    for heading in ("signal", "per", "measured", "unit") if wide else ("signal",):
        result.add_column(heading, no_wrap=True)
    result.add_column("meaning and source", ratio=1)
    rows: list[tuple[str, str, str, str, str, str]]
    rows = [(s.name, s.level, HOW_OFTEN[s.tier], s.unit, s.help, s.source) for s in CATALOGUE]
    rows += [(d.name, d.level, "derived", d.unit, d.help, "") for d in DERIVED]
    for name, level, measured, unit, help, source in rows:
        meaning = Text(help)
        if not wide:
            meaning.append(f" Per {level}, {measured}{'' if unit == '1' else f', in {unit}'}.", style="faint")
        if source:
            meaning.append(f" {source}", style="faint")
        result.add_row(name, *((level, measured, unit) if wide else ()), meaning)
    return result
