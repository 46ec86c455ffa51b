"""The command line, one file per command. A command parses, calls the library, renders, and sets the exit code.

Nothing but typer is imported before a command runs, so that `stabwatch --help` answers at once; only `demo` imports
torch. Exit codes are in `app.Exit`.
"""

from __future__ import annotations


def main() -> None:
    """Entry point of the `stabwatch` command."""
    try:
        from stabwatch.cli.app import app

        app(prog_name="stabwatch")
    except KeyboardInterrupt:  # before a command starts; afterwards `app.guarded` handles it
        raise SystemExit(130) from None
    finally:
        # Python remembers an interrupt that passed through an `exec` of text (each dataclass makes one) as unhandled
        # and would end with SIGINT instead of the exit code, until the next `exec` of text.
        exec("")
