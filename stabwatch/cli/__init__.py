"""The command line, one file per command. A command parses, calls the library, renders, and sets the exit code.

Nothing but typer is imported before a command runs, so that `stabwatch --help` answers at once; only `demo` imports
torch. Exit codes are in `app.Exit`.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the `stabwatch` command."""
    try:
        if not _analyzed(sys.argv[1:]):
            from stabwatch.cli.app import app

            app(prog_name="stabwatch")
    except KeyboardInterrupt:  # before a command starts; afterwards `app.guarded` handles it
        raise SystemExit(130) from None
    finally:
        # Python remembers an interrupt that passed through an `exec` of text (each dataclass makes one) as unhandled
        # and would end with SIGINT instead of the exit code, until the next `exec` of text.
        exec("")


def _analyzed(arguments: list[str]) -> bool:
    """Run `analyze PATH...` without options: to make a parser of what typer declares takes a tenth of a second."""
    command, *paths = arguments or [""]
    if command != "analyze" or not paths or any(path.startswith("-") for path in paths):
        return False
    from pathlib import Path

    from typer import Exit

    from stabwatch.cli.app import guarded
    from stabwatch.cli.commands.analyze import analyze

    try:
        guarded(analyze, ends=True)([Path(path) for path in paths])
    except Exit as end:
        raise SystemExit(end.exit_code) from None
    return True
