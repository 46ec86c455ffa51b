"""`stabwatch replay`: alerts that rules would have raised on old runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from stabwatch.cli.arguments import JsonOption, RulesOption, RunsArgument, chosen

if TYPE_CHECKING:
    from rich.console import RenderableType

    from stabwatch.alerts.incidents import Incident
    from stabwatch.analysis.replay import Replays, RuleTally

MOST_PLACES = 8
"""Most incidents listed per rule; the rest is counted, and is in `--json`."""


def replay(
    runs: RunsArgument,
    rules: RulesOption = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Replay on the Ray cluster of RAY_ADDRESS, or on a local one.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run today's rules over old runs, exactly as live.

    Shows how often each rule would have fired, and where; the differences to the alerts of the agent; and incidents
    that only the whole run shows in hindsight.
    Many runs are replayed on all cores of this machine at once, or with --ray on many machines, which need to see the
    folders or read the object store.
    Exit code 0: calm; 1: a warning or a critical alert fired; 2: a log cannot be read.
    """
    from stabwatch.analysis.many import FEW, cores, places, replay_many
    from stabwatch.analysis.replay import replay as over
    from stabwatch.analysis.sources import open_sources
    from stabwatch.cli.render.console import console, print_json
    from stabwatch.cli.render.progress_bar import ProgressBar

    with ProgressBar("replaying") as bar:
        parts = places(runs, elsewhere=ray)
        if ray or (len(parts) >= FEW and cores() > 1):
            found = replay_many(parts, chosen(rules), ray, bar.counting)
        else:
            found = over(open_sources(runs, bar.reading), chosen(rules), progress=bar)
    if as_json:
        print_json(found.to_dict())
    else:
        out = console()
        for part in rendered(found):
            out.print(part)
    raise typer.Exit(found.exit_code)


def rendered(found: Replays) -> Iterator[RenderableType]:
    """Print the verdict of each rule, where it fired, and the differences to the alerts of the agent."""
    from rich.text import Text

    from stabwatch.cli.render.text import count

    runs = count(len(found.runs), "run")
    fired = [tally for tally in found.tallies if tally.incidents]
    for tally in fired:
        yield from _tally(tally, runs)
    silent = [tally.rule for tally in found.tallies if not tally.incidents]
    if silent:
        yield Text(f"Silent in {runs}: {', '.join(silent)}.", style="calm" if not fired else "none")
    yield from _differences(found)
    yield from _hindsight(found)


def _tally(tally: RuleTally, runs: str) -> Iterator[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    from stabwatch.cli.render.text import clean, count

    worst = next(severity for severity, n in tally.severities.items() if n)
    counts = ", ".join(f"{n} {severity}" for severity, n in tally.severities.items() if n)
    times = count(len(tally.incidents), "time")
    line = Text(clean(tally.rule), style=worst)
    yield line.append(f" would have fired {times} in {tally.runs} of {runs} ({counts}):", style="none")
    for run, incident in tally.incidents[:MOST_PLACES]:
        yield Padding(Text(_place(run, incident)), (0, 0, 0, 2))
    if len(tally.incidents) > MOST_PLACES:
        yield Padding(Text(f"and {len(tally.incidents) - MOST_PLACES:,} more", style="faint"), (0, 0, 0, 2))
    yield Text()


def _place(run: str, incident: Incident) -> str:
    from stabwatch.cli.render.text import clean, listed

    layers = [clean(layer) for layer in incident.layers]
    where = f" in {listed(layers, 3)}" if layers else ""
    until = "to the end" if incident.last_step is None else f"to {incident.last_step:,}"
    fired = incident.first_step if incident.live_step is None else incident.live_step
    since = f", outside its range since {incident.first_step:,}" if incident.first_step != fired else ""
    return f"{clean(run)}: step {fired:,} {until}{since}{where}. {clean(incident.text)}"


def _hindsight(found: Replays) -> Iterator[RenderableType]:
    """Print the differences to `analyze`, which only the whole run shows."""
    from rich.padding import Padding
    from rich.text import Text

    from stabwatch.cli.render.text import clean

    for run in found.runs:
        lines = [(i, "Only in hindsight") for i in run.only_in_hindsight]
        lines += [(i, "No problem in hindsight") for i in run.withdrawn]
        if lines:
            yield Text(f"{clean(run.run)}: the whole run shows more than the rules (`stabwatch analyze`):")
        for incident, words in lines[:MOST_PLACES]:
            line = f"{words}, {clean(incident.condition)} at step {incident.first_step:,}: {clean(incident.text)}"
            yield Padding(Text(line, style=incident.severity), (0, 0, 0, 2))
        if len(lines) > MOST_PLACES:
            yield Padding(Text(f"and {len(lines) - MOST_PLACES:,} more", style="faint"), (0, 0, 0, 2))


def _differences(found: Replays) -> Iterator[RenderableType]:
    """Print runs whose agent wrote other alerts. Runs without recorded alerts most likely had no agent."""
    from rich.text import Text

    from stabwatch.cli.render.text import clean, count

    for run in found.runs:
        if not run.recorded and run.alerts:
            yield Text(
                f"{clean(run.run)}: no alert was recorded during the run (no agent, or other rules).", style="faint"
            )
        elif run.new or run.gone:
            new, gone = count(len(run.new), "alert"), count(len(run.gone), "alert")
            yield Text(f"{clean(run.run)}: {new} that the agent did not write; {gone} that only the agent wrote.")
