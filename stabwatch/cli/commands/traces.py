"""`stabwatch traces`: how unstable a model's generations were, token by token."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stabwatch.cli.arguments import JsonOption

if TYPE_CHECKING:
    from rich.table import Table

    from stabwatch.analysis.traces.file import Trace, Traces

MOST = 20
"""Traces in the table: those with the highest peaks."""


def traces(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSON lines (or one JSON document) with log-probabilities.")
    ],
    weight: Annotated[
        float, typer.Option("--lambda", min=0.0, help="Weight of the entropy against the divergence.")
    ] = 1.0,
    label: Annotated[
        str | None,
        typer.Option(
            "--label", help="Field that says whether the answer is right: true or false, or a number above 0.5."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show where generations were unstable.

    For each token: the Jensen-Shannon divergence of successive next-token distributions plus lambda times the entropy.
    Of each trace: its peak, and where that is. Where answers are labelled, also how well these numbers tell wrong
    answers from right ones. Reads what OpenAI's API, vLLM, SGLang, TGI, llama.cpp and transformers (`scores`) return.
    """
    from stabwatch.analysis.traces.file import read_traces
    from stabwatch.cli.render.console import console, print_json

    found = read_traces(file, weight, label)
    if as_json:
        print_json(found.to_dict())
        return
    out = console()
    out.print(_table(found))
    for line in _lines(found):
        out.print(line)


def _table(found: Traces) -> Table:
    from rich.table import Table

    from stabwatch.cli.render.text import clean, number

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="faint")
    labelled = found.label is not None
    for heading in (
        "trace",
        "tokens",
        "peak",
        "at token",
        "place",
        "mean",
        "entropy",
        *(["answer"] if labelled else []),
    ):
        table.add_column(heading, justify="left" if heading in ("trace", "answer") else "right")
    for trace in sorted(found.traces, key=lambda t: -t.found.peak)[:MOST]:
        x = trace.found
        row = (clean(trace.name), str(x.tokens), number(x.peak), str(x.at), f"{x.place:.0%}", number(x.mean))
        table.add_row(*row, number(x.entropy), *([_answer(trace)] if labelled else []))
    return table


def _answer(trace: Trace) -> str:
    return "-" if trace.right is None else "right" if trace.right else "wrong"


def _lines(found: Traces) -> list[str]:
    """What is said below the table."""
    n = len(found.traces)
    out = [f"The {MOST} highest peaks of {n} traces; --json has all."] if n > MOST else []
    covered = min(t.found.covered for t in found.traces)
    if covered < 0.9:
        out.append(
            f"Only the most probable tokens were listed; of one trace they have {covered:.0%} of the probability. "
            "The rest counts as one token, so the entropy is a lower bound."
        )
    out += [f"Left out: {count} record{'s' * (count > 1)}: {reason}." for reason, count in found.left_out.items()]
    return out + _verdict(found)


def _verdict(found: Traces) -> list[str]:
    from stabwatch.cli.render.text import clean

    if found.label is None:
        return []
    right = [t.right for t in found.traces if t.right is not None]
    if not found.separations:
        every = "right" if right and right[0] else "wrong"
        return [f"All {len(right)} answers with a label (field {clean(found.label)}) are {every}: nothing to separate."]
    out = [f"{sum(right)} of {len(right)} answers are right (field {clean(found.label)}). As a sign of a wrong answer:"]
    for s in found.separations:
        told = "  higher where wrong" if s.low > 0.5 else ""
        told = "  lower where wrong" if s.high < 0.5 else told
        out.append(f"  {s.name:18} AUC {s.auc:.2f} (95 %: {s.low:.2f} to {s.high:.2f}){told}")
    for half, (good, all_) in zip(("first", "second"), found.by_place(), strict=True):
        share = f"{good / all_:.0%}" if all_ else "-"
        out.append(f"  Peak in the {half} half: {good} of {all_} right ({share}).")
    return out
