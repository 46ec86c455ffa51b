"""Lines for who started the training."""

from __future__ import annotations

import sys
from contextlib import suppress


def say(what: str) -> None:
    """Print to standard error. A program may have none (`2>&-`, a service), or one that cannot be written to."""
    if sys.stderr is not None:
        with suppress(Exception):
            print(f"stabwatch: {what}", file=sys.stderr)
