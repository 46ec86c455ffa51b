"""Arguments and exit codes that several commands share."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from stabwatch.alerts import Rule


class Exit(IntEnum):
    """Exit codes of every command."""

    CALM = 0
    FIRED = 1
    """`analyze`: a warning or critical alert fired. `doctor`: a check failed. `demo`: no alert fired."""
    UNREADABLE = 2
    """Bad input: wrong options, a folder that is not a run, a port in use. One line on stderr says which."""
    BUG = 3
    INTERRUPTED = 130
    BROKEN_PIPE = 141


RUNS = Path("stabwatch-runs")
"""Default folder of `stabwatch.attach` for runs."""

PASSWORD = "STABWATCH_PASSWORD"
"""Environment variable with the password; an option would be visible in the process list."""

HostOption = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 opens it to the network.")]

PortOption = Annotated[
    int, typer.Option(help="Port. If it is taken, the next free one; 0 for any free port.", min=0, max=65535)
]

CertfileOption = Annotated[Path | None, typer.Option(help="TLS certificate (PEM); needs --keyfile.")]

KeyfileOption = Annotated[Path | None, typer.Option(help="Private key of the certificate (PEM).")]

UsernameOption = Annotated[
    str | None,
    typer.Option(help=f"User name of the login. {PASSWORD} in the environment has its password and turns it on."),
]

RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder, or a folder of runs (the newest is used).")
]

RunsArgument = Annotated[
    list[Path],
    typer.Argument(metavar="RUN...", help="Run folders, folders of runs (all are used), or logs of other trainers."),
]

PathsArgument = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="PATH...",
        help="Run folders, folders of runs, logs of other trainers or their folders. Default: ./stabwatch-runs.",
    ),
]

ExplainOption = Annotated[
    str | None,
    typer.Option(
        "--explain",
        metavar="LINE",
        help="Show how a line was read: its number in the log at PATH, or, without a PATH, the text of a line.",
    ),
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

RulesOption = Annotated[
    Path | None, typer.Option("--rules", help="YAML file that changes, mutes or adds rules (docs/alerts.md).")
]


def chosen(rules: Path | None) -> tuple[Rule, ...]:
    """The rules of a file, or the built-in rules. Raises RuleError."""
    from stabwatch.alerts import RULES

    if rules is None:
        return RULES
    from stabwatch.alerts.user_rules import load_rules

    return load_rules(rules)
