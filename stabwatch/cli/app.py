"""The typer application: the commands, and how each of them ends on an error."""

from __future__ import annotations

import functools
import gc
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from stabwatch import __version__
from stabwatch.cli.arguments import RUNS, Exit
from stabwatch.cli.commands import (
    agent,
    analyze,
    compare,
    demo,
    doctor,
    export,
    forecast,
    grafana,
    preflight,
    replay,
    report,
    rules,
    run,
    runbook,
    serve,
    signals,
    tag,
    top,
    traces,
)
from stabwatch.errors import StabwatchError

app = typer.Typer(
    help=(
        "Detect instability in PyTorch training before the loss shows it.\n\n"
        "RUN is a run folder, or a folder of runs. Of several runs, the newest is used. "
        "Without a command: the latest runs in ./stabwatch-runs."
    ),
    invoke_without_command=True,  # the latest runs
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,  # importing rich's help takes as long as everything else together
    pretty_exceptions_enable=False,
)


SELDOM = 50_000
"""New objects between two collections in a command that answers and ends: most of what it makes it keeps."""


def guarded(command: Callable[..., None], *, ends: bool = False) -> Callable[..., None]:
    """Wrap a command so that it always ends with a documented exit code.

    ends: it answers and ends, and neither trains nor serves in this process.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        thresholds = gc.get_threshold()
        try:
            if ends:
                gc.set_threshold(SELDOM, *thresholds[1:])
            from stabwatch.config import check_variables

            check_variables()
            command(*args, **kwargs)
            sys.stdout.flush()
        except KeyboardInterrupt:
            raise typer.Exit(Exit.INTERRUPTED) from None
        except BrokenPipeError:
            # The reader is gone (`| head`). Buffered output must not raise again when Python flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(Exit.BROKEN_PIPE) from None
        except (StabwatchError, OSError) as error:
            from stabwatch.cli.render.text import clean

            print(f"stabwatch: {clean(str(error))}", file=sys.stderr)
            raise typer.Exit(Exit.UNREADABLE) from None
        except typer.Exit:
            raise
        except Exception:
            import traceback

            traceback.print_exc()
            print("stabwatch: this is a bug in stabwatch, please report it with the lines above.", file=sys.stderr)
            raise typer.Exit(Exit.BUG) from None
        finally:
            gc.set_threshold(*thresholds)

    return run


STAY = ("demo", "agent", "serve", "top")
"""Commands that train, or do not end by themselves."""
for name, command in (
    ("demo", demo.demo),
    ("agent", agent.agent),
    ("serve", serve.serve),
    ("top", top.top),
    ("analyze", analyze.analyze),
    ("report", report.report),
    ("compare", compare.compare),
    ("forecast", forecast.forecast),
    ("traces", traces.traces),
    ("replay", replay.replay),
    ("export", export.export),
    ("tag", tag.tag),
    ("signals", signals.signals),
    ("runbook", runbook.runbook),
    ("doctor", doctor.doctor),
):
    app.command(name)(guarded(command, ends=name not in STAY))
app.command("preflight", context_settings=run.CONTEXT)(guarded(preflight.preflight))
app.command("run", context_settings=run.CONTEXT)(guarded(run.run))

dashboards = typer.Typer(
    help="Push, compare or export Grafana dashboards.", no_args_is_help=True, rich_markup_mode=None
)
dashboards.command("push")(guarded(grafana.push))
dashboards.command("diff")(guarded(grafana.diff))
dashboards.command("export")(guarded(grafana.export))
app.add_typer(dashboards, name="grafana")

catalogue = typer.Typer(help="Check, show or test alert rules.", no_args_is_help=True, rich_markup_mode=None)
catalogue.command("check")(guarded(rules.check))
catalogue.command("show")(guarded(rules.show))
catalogue.command("test")(guarded(rules.test))
app.add_typer(catalogue, name="rules")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"stabwatch {__version__}")
        raise typer.Exit


def show_latest() -> None:
    """The latest runs in the default folder. Raises RunLogError."""
    from stabwatch.cli.render.console import console
    from stabwatch.cli.render.latest import latest

    console().print(latest(RUNS))


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options before the command."""
    if context.invoked_subcommand is None:
        if next(RUNS.glob("*/meta.json"), None) is None:
            print(f"No runs in {RUNS}.\n\n{context.get_help()}")
        else:
            guarded(show_latest)()
