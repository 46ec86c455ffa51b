"""`stabwatch demo`: train a small GPT until its attention logits grow beyond a safe size, and analyze the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stabwatch.cli.arguments import Exit

if TYPE_CHECKING:
    from stabwatch.analysis import Analysis

EXPECTED_LR = 1e-2
EXPECTED_STEPS = 150
"""With at least this learning rate and this many steps, a demo without an alert has failed."""


def demo(
    steps: Annotated[int, typer.Option(help="Training steps.", min=1)] = 300,
    lr: Annotated[float, typer.Option(help="Learning rate; 1e-3 is healthy.", min=0.0)] = 3e-2,
    seed: Annotated[int, typer.Option(help="Seed of weights and batches.")] = 0,
    run_dir: Annotated[Path | None, typer.Option(help="Folder for the run log. Default: a new one.")] = None,
    agent: Annotated[bool, typer.Option("--agent/--no-agent", help="Serve /metrics and the live page.")] = True,
    port: Annotated[int, typer.Option(help="Port. If it is taken, the next free one.", min=0, max=65535)] = 9478,
    linger: Annotated[float, typer.Option(help="Seconds to keep serving after the run.", min=0)] = 60.0,
) -> None:
    """Train a small GPT that becomes unstable, and detect it.

    The model is trained on the sources of Python's standard library, with a learning rate at which its attention
    logits grow beyond a safe size while the loss looks normal. It takes about two minutes. Exit code 0 if the alert
    fired.
    """
    from stabwatch.cli.render.console import console

    out = console()
    with out.status("loading torch"):
        from stabwatch.demo import DemoConfig, train
    from stabwatch.cli.commands.analyze import show
    from stabwatch.cli.render.demo_progress import Progress

    settings = {"agent": agent, "port": port, "linger": linger, "verbose": False}
    config = DemoConfig(steps=steps, lr=lr, seed=seed, run_dir=run_dir, watch=settings)
    with Progress(out, steps) as progress:
        run = train(config, progress.step, progress.start)
        progress.alerts()
    out.print()
    analysis = show(run)
    if progress.page is not None:
        out.print(f"\nThe live page is available for {linger:g} s: {progress.page}", style="faint")
    if not done(analysis, steps, lr):
        out.print("\nThe demo failed: no alert fired.", style="critical")
        raise typer.Exit(Exit.FIRED)


def done(analysis: Analysis, steps: int, lr: float) -> bool:
    """Whether the alert fired, if one was due."""
    return analysis.exit_code == Exit.FIRED or lr < EXPECTED_LR or steps < EXPECTED_STEPS
