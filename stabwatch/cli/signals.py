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

    For each signal: how often it is measured, its unit, its meaning, and the paper or code it comes from.
    """
    from dataclasses import asdict

    from stabwatch.cli.console import console, print_json
    from stabwatch.signals import CATALOGUE

    if as_json:
        print_json({"schema": 1, "signals": [{**asdict(s), "metric": s.metric} for s in CATALOGUE]})
    else:
        out = console()
        out.print(table(wide=out.width >= WIDE))


def table(wide: bool) -> Table:
    """The catalogue as a table."""
    from rich.table import Table
    from rich.text import Text

    from stabwatch.signals import CATALOGUE

    result = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="title")
    for heading in ("signal", "per", "measured", "unit") if wide else ("signal",):
        result.add_column(heading, no_wrap=True)
    result.add_column("meaning and source", ratio=1)
    for signal in CATALOGUE:
        facts = (signal.level, HOW_OFTEN[signal.tier], signal.unit)
        meaning = Text(signal.help)
        if not wide:
            unit = "" if signal.unit == "1" else f", in {signal.unit}"
            meaning.append(f" Per {signal.level}, {HOW_OFTEN[signal.tier]}{unit}.", style="faint")
        if signal.source:
            meaning.append(f" {signal.source}", style="faint")
        result.add_row(signal.name, *(facts if wide else ()), meaning)
    return result
