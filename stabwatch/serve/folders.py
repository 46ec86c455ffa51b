"""The run folders below a folder, and what identifies them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from stabwatch.runlog.labels import LABELS
from stabwatch.runlog.schema import EVENTS, META

DEEPEST = 8
"""Levels of folders that are searched."""
_FILES = (META, EVENTS, LABELS)

Stamp = list[list[str | int]]
"""Name, size and time of change of each file of a run log that grows."""


def run_folders(root: Path) -> dict[Path, Stamp]:
    """All run folders below a folder, the one that changed last first. Links and hidden folders are not followed.

    A folder that cannot be read is left out. Raises OSError if it is the root.
    """
    found: dict[Path, Stamp] = {}
    os.listdir(root)
    level = [root]
    for _ in range(DEEPEST):
        below: list[Path] = []
        for folder in level:
            _look(folder, found, below)
        level = below
    return dict(sorted(found.items(), key=lambda f: -changed(f[1])))


def changed(stamp: Stamp) -> int:
    """When something was last written, in nanoseconds since the epoch; 0 if that is not known."""
    return max((int(when) for _, _, when in stamp), default=0)


def _look(folder: Path, found: dict[Path, Stamp], below: list[Path]) -> None:
    try:
        with os.scandir(folder) as entries:
            there = list(entries)
        if any(entry.name == META and entry.is_file(follow_symlinks=False) for entry in there):
            found[folder] = _stamp(there)
            return
        below += [Path(e.path) for e in there if not e.name.startswith(".") and e.is_dir(follow_symlinks=False)]
    except OSError:
        return


def stamp(run: Path) -> Stamp:
    """What changes when something is written to a run log, or its labels change."""
    try:
        with os.scandir(run) as entries:
            return _stamp(entries)
    except OSError:
        return []


def _stamp(entries: Iterable[os.DirEntry[str]]) -> Stamp:
    found: Stamp = []
    for entry in entries:
        if entry.name in _FILES or entry.name.endswith(".arrows"):
            facts = entry.stat(follow_symlinks=False)
            found.append([entry.name, facts.st_size, facts.st_mtime_ns])
    return sorted(found)


def identifier(folder: str) -> str:
    """The name of a run in addresses: its folder's name, and a digest of the whole path below the root."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.rpartition("/")[2])[:60].strip(".-")
    return f"{name or 'run'}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:10]}"
