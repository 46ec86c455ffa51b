"""Where the ranks of a job are while it does not go on: one file for each rank in the run folder.

A rank writes `stacks/<attempt>/<rank>.json` when its step is overdue, or when it ends with an exception, and removes it
when the step ends after all. Whoever sees the run folder can write and read: also when rank 0 has stopped.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

STACKS = "stacks"

State = Literal["overdue", "raised", "left", "lost"]
Inside = Literal["collective", "backward", "loader", ""]


@dataclass(frozen=True)
class Place:
    """A line of code that is running, and its text ('' where the source is not at hand)."""

    file: str
    line: int
    function: str
    text: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}, in `{self.function}`" + (f" (`{self.text}`)" if self.text else "")


@dataclass(frozen=True)
class Stand:
    """Where one rank is.

    state: its step is overdue, it raised an exception, its watch has ended, or its process is gone. step: number of the
    open step. seconds: since the step before ended. patience: seconds from which the step is overdue. time: when this
    was seen, in seconds since the epoch. inside: what of torch the thread is in. call: the function of torch that the
    user's code has called there. place: the innermost line of the user's code. busy: what may take long in a healthy
    run ('' for nothing), and busy_limit: for how many seconds. entered: for each process group, the number of the last
    collective that was entered, whether it has ended, and its name; empty where torch does not record them. threads:
    the stacks, the innermost line first.
    """

    rank: int
    world: int
    state: State
    step: int
    seconds: float
    patience: float
    time: float
    inside: Inside = ""
    call: str = ""
    place: Place | None = None
    busy: str = ""
    busy_limit: float = 0.0
    error: str = ""
    entered: dict[str, tuple[int, bool, str]] = field(default_factory=dict)
    threads: dict[str, list[str]] = field(default_factory=dict)

    def to_json(self) -> str:
        """As it is in its file."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Stand:
        """Raises ValueError, TypeError and KeyError for a text that is none."""
        data: Mapping[str, Any] = json.loads(text)
        known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        known["place"] = Place(**known["place"]) if known.get("place") else None
        known["entered"] = {
            group: (int(number), bool(ended), str(name))
            for group, (number, ended, name) in dict(known.get("entered", {})).items()
        }
        return cls(**known)


def _folder(run: Path, attempt: int) -> Path:
    return run / STACKS / str(attempt)


def write_stand(run: Path, attempt: int, rank: int, text: str) -> None:
    """Write the file of a rank, which appears as a whole. Raises OSError."""
    folder = _folder(run, attempt)
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{rank}.{os.getpid()}"
    draft.write_text(text, encoding="utf-8")
    draft.replace(folder / f"{rank}.json")


def remove_stand(run: Path, attempt: int, rank: int) -> None:
    """The rank has gone on. Raises OSError."""
    (_folder(run, attempt) / f"{rank}.json").unlink(missing_ok=True)


def remove_stands(run: Path, attempt: int) -> None:
    """An attempt begins: what is there is of another one with its number."""
    shutil.rmtree(_folder(run, attempt), ignore_errors=True)


def read_stands(run: Path, attempt: int) -> dict[int, Stand]:
    """The files of an attempt by rank; one that cannot be read is left out."""
    found = {}
    try:
        files = sorted(_folder(run, attempt).glob("[0-9]*.json"))
    except OSError:
        return {}
    for file in files:
        try:
            stand = Stand.from_json(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError, KeyError):
            continue
        found[stand.rank] = stand
    return found
