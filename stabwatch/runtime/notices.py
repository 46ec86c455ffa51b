"""Lines for who started the training."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path


def say(what: str) -> None:
    """Print to standard error. A program may have none (`2>&-`, a service), or one that cannot be written to."""
    if sys.stderr is not None:
        with suppress(Exception):
            print(f"stabwatch: {what}", file=sys.stderr)


def from_here(path: Path) -> Path:
    """A path as it is shown: relative to the folder that the process is in now, where it is below that."""
    with suppress(OSError, ValueError):  # that folder may be gone
        return path.relative_to(Path.cwd())
    return path


def anywhere(path: Path) -> Path:
    """A path that stays right when the process changes to another folder."""
    with suppress(OSError):
        return path.absolute()
    return path
