"""What is known of ended runs, in a file beside them: a restarted service does not read them again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stabwatch.runlog.atomic import atomic_output

FILE = ".stabwatch-runs.jsonl"
VERSION = 2


@dataclass(frozen=True)
class Known:
    """An ended run. stamp: of its folder when it was read."""

    stamp: list[Any]
    row: dict[str, Any]
    facts: dict[str, str]


def load(root: Path) -> dict[str, Known]:
    """Ended runs by folder. A file that cannot be read is as none."""
    found: dict[str, Known] = {}
    try:
        with open(root / FILE, encoding="utf-8") as file:
            if json.loads(file.readline()) != {"version": VERSION}:
                return {}
            for line in file:
                entry = json.loads(line)
                row, facts = dict(entry["row"]), dict(entry["facts"])
                found[str(entry["folder"])] = Known(list(entry["stamp"]), row, {k: str(v) for k, v in facts.items()})
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return found


def save(root: Path, known: Mapping[str, Known]) -> None:
    """Replace the file. Raises OSError where nothing may be written."""
    with atomic_output(root / FILE) as draft, open(draft, "w", encoding="utf-8") as file:
        file.write(json.dumps({"version": VERSION}) + "\n")
        for folder, entry in known.items():
            line = {"folder": folder, "stamp": entry.stamp, "row": entry.row, "facts": entry.facts}
            file.write(json.dumps(line) + "\n")
