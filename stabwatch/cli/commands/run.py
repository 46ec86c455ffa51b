"""`stabwatch run`: watch a training program without changing it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

CONTEXT = {"ignore_unknown_options": True, "allow_interspersed_args": False}
"""Options after the command's name belong to the command."""


def run(
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND...", help="`python train.py ...`, `torchrun ...`, `-m module ...`, `train.py`."
        ),
    ],
    config: Annotated[Path | None, typer.Option("--config", help="YAML file with settings of `attach`.")] = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="Folder for the run log; default: a new one.")
    ] = None,
) -> None:
    """Run a training program and watch it, without changing it.

    It is watched from its first optimizer step. The program replaces this process, so arguments, standard input and
    output, signals and the exit code are those of the program.
    """
    from stabwatch.config import Config
    from stabwatch.integrations import environment
    from stabwatch.runlog.stores import url_of

    Config.load(config)  # report a mistake now, not in the middle of the program
    words = full_command(command)
    if ignores_environment(words):
        print(
            "stabwatch: the program is not watched, because -E, -I or -S keeps Python from loading stabwatch.",
            file=sys.stderr,
        )
    folder = None if run_dir is None else url_of(run_dir) or str(run_dir.absolute())
    environment.add_to(os.environ, config, folder)
    sys.stdout.flush()
    sys.stderr.flush()
    for name in ("SIGPIPE", "SIGXFSZ"):  # Python ignores them, and a program would inherit that
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    os.execvp(words[0], words)


def full_command(words: list[str]) -> list[str]:
    """The command, with this Python before a script or options of Python."""
    first = words[0]
    return [sys.executable, *words] if first.endswith(".py") or first.startswith("-") else words


def ignores_environment(words: list[str]) -> bool:
    """Whether the command has a Python option that disables PYTHONPATH or `sitecustomize`."""
    if not os.path.basename(words[0]).startswith("python"):
        return False
    for word in words[1:]:
        if not word.startswith("-") or word.startswith("--") or word in ("-", "-c", "-m"):
            return False
        if set("EIS") & set(word[1:]) and word[1] not in "WX":
            return True
    return False
