"""Consoles: plain text without a terminal, and no markup in printed text."""

from __future__ import annotations

import codecs
import json
import os
import sys
from collections.abc import Mapping
from io import TextIOWrapper
from typing import IO, Any, NoReturn

from rich.console import Console
from rich.theme import Theme

THEME = Theme(
    {
        "critical": "bold red",
        "warning": "yellow",
        "info": "cyan",
        "calm": "green",
        "title": "bold",
        "faint": "dim",
        "onset": "bold magenta",
        "line": "blue",
    }
)
"""All colours. `critical`, `warning` and `info` are the severities of rules."""

PLAIN_WIDTH = 100
"""Width when the output is not a terminal and COLUMNS is not set."""


_PLAIN = {"–": "-", "—": "-", "−": "-", "•": "*", "→": ">", "…": "~", "≥": ">", "≤": "<", "×": "x", "²": "2"}


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replacement of the same width for a character that the terminal's encoding lacks."""
    assert isinstance(error, UnicodeEncodeError)
    return "".join(_PLAIN.get(c, "?") for c in error.object[error.start : error.end]), error.end


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:
        """Leave it to `guarded`; rich would exit with 1, which means that an alert fired."""
        raise BrokenPipeError


def console(file: IO[str] | None = None, **options: Any) -> Console:
    """A console on stdout. Markup, emoji codes and highlighting are off, because the text comes from logs."""
    stream = file or sys.stdout
    if isinstance(stream, TextIOWrapper):
        codecs.register_error("stabwatch", _plain)
        stream.reconfigure(errors="stabwatch")
    settings: dict[str, Any] = {"theme": THEME, "markup": False, "emoji": False, "highlight": False, **options}
    if "width" not in settings and not stream.isatty() and not os.environ.get("COLUMNS", "").isdigit():
        settings["width"] = PLAIN_WIDTH
    return _Console(file=stream, **settings)


def print_json(data: Mapping[str, Any]) -> None:
    """Print strict JSON, without NaN and Infinity, which many parsers reject."""
    print(json.dumps(data, indent=2, allow_nan=False))
