"""The run folders below a folder, and what identifies them."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from stabwatch.runlog.schema import EVENTS, META

DEEPEST = 8
"""Levels of folders that are searched."""

Stamp = list[list[str | int]]
"""Name, size and time of change of each file of a run log that grows."""


def run_folders(root: Path) -> list[Path]:
    """All run folders below a folder, the one that changed last first. Links and hidden folders are not followed.

    A folder that cannot be read is left out. Raises OSError if it is the root.
    """
    found: list[tuple[int, Path]] = []
    os.listdir(root)
    level = [root]
    for _ in range(DEEPEST):
        below: list[Path] = []
        for folder in level:
            _look(folder, found, below)
        level = below
    return [path for _, path in sorted(found, key=lambda f: -f[0])]


def _look(folder: Path, found: list[tuple[int, Path]], below: list[Path]) -> None:
    try:
        with os.scandir(folder) as entries:
            there = list(entries)
        if any(entry.name == META and entry.is_file(follow_symlinks=False) for entry in there):
            found.append((max(e.stat(follow_symlinks=False).st_mtime_ns for e in there), folder))
            return
        below += [Path(e.path) for e in there if not e.name.startswith(".") and e.is_dir(follow_symlinks=False)]
    except OSError:
        return


def stamp(run: Path) -> Stamp:
    """What changes when something is written to a run log."""
    found: Stamp = []
    try:
        with os.scandir(run) as entries:
            for entry in entries:
                if entry.name in (META, EVENTS) or entry.name.endswith(".arrows"):
                    facts = entry.stat(follow_symlinks=False)
                    found.append([entry.name, facts.st_size, facts.st_mtime_ns])
    except OSError:
        pass
    return sorted(found)


def identifier(folder: str) -> str:
    """The name of a run in addresses: its folder's name, and a digest of the whole path below the root."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.rpartition("/")[2])[:60].strip(".-")
    return f"{name or 'run'}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:10]}"
