"""`stabwatch preflight`: the first steps of a training program, and what they show of its set-up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stabwatch.cli.arguments import Exit, JsonOption
from stabwatch.cli.commands.run import full_command

if TYPE_CHECKING:
    from stabwatch.alerts.preflight import Preflight

STDERR = 2
"""What the program prints is no part of the result."""
POLL_SECONDS = 0.2
GRACE_SECONDS = 5.0
"""Time that a program has to end when it is asked to."""


def preflight(
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND...", help="`python train.py ...`, `-m module ...`, `train.py`; or a run folder."
        ),
    ],
    steps: Annotated[int, typer.Option(help="Optimizer steps after which the program is ended.", min=1)] = 3,
    timeout: Annotated[float, typer.Option(help="Seconds after which it is ended in any case.", min=1.0)] = 600.0,
    as_json: JsonOption = False,
) -> None:
    """Run a few steps, and say what is wrong with the set-up.

    The program is ended after these steps; its log goes to a temporary folder. Of a run folder, what was recorded is
    judged. Exit code 1 if something was found, 2 if there was no step.
    """
    from stabwatch.alerts.preflight import preflight as judged
    from stabwatch.cli.render.console import print_json
    from stabwatch.runlog import find_run

    folder = Path(command[0])
    if len(command) == 1 and folder.is_dir():
        found = judged(find_run(folder))
    else:
        with tempfile.TemporaryDirectory(prefix="stabwatch-preflight-") as temporary:
            found = _started(command, Path(temporary), steps, timeout)
    if as_json:
        print_json({"schema": 1, **found.to_dict()})
    else:
        print(found)
    if not found.steps:
        raise typer.Exit(Exit.UNREADABLE)
    if not found.ok:
        raise typer.Exit(Exit.FIRED)


def _started(command: list[str], folder: Path, steps: int, timeout: float) -> Preflight:
    """Start the program, watched, end it after so many steps, and judge what it recorded."""
    from stabwatch.alerts.preflight import Preflight
    from stabwatch.alerts.preflight import preflight as judged
    from stabwatch.integrations import environment
    from stabwatch.runlog import holds_run

    settings, run = folder / "settings.yaml", folder / "run"
    settings.write_text("agent: false\nverbose: false\nevery_step: true\n", encoding="utf-8")
    variables = dict(os.environ)
    environment.add_to(variables, settings, str(run.absolute()))
    variables[environment.PREFLIGHT] = str(run.absolute())
    program = subprocess.Popen(full_command(command), env=variables, start_new_session=True, stdout=STDERR)
    ends = time.monotonic() + timeout
    try:
        while program.poll() is None and time.monotonic() < ends and _records(run) < steps:
            time.sleep(POLL_SECONDS)
        if program.poll() is None:
            done = f"{steps} steps are recorded" if _records(run) >= steps else f"{timeout:g} s are over"
            print(f"stabwatch preflight: {done}; the program is interrupted now (KeyboardInterrupt).", file=sys.stderr)
    finally:
        _end(program)
    return judged(run) if holds_run(run) else Preflight(0)


def _records(run: Path) -> int:
    from stabwatch.errors import RunLogError
    from stabwatch.runlog import RunLog, holds_run

    if not holds_run(run):
        return 0
    try:
        return sum(map(len, RunLog(run).stream()))
    except RunLogError:  # it is being made
        return 0


def _end(program: subprocess.Popen[bytes]) -> None:
    """End a program and what it has started."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(program.pid, number)
        except (ProcessLookupError, PermissionError):
            break
        try:
            program.wait(GRACE_SECONDS)
            break
        except subprocess.TimeoutExpired:
            continue
