"""Attaches like a user does; see the fixture `attach`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import stabwatch
from stabwatch.runlog import Run, read_run


class Attacher:
    """Attaches like a user, remembers the watch."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.watches: list[stabwatch.Watch] = []

    def __call__(self, model: Any, optimizer: Any = None, **settings: Any) -> stabwatch.Watch:
        settings = {"agent": False, "verbose": False, "every_step": True, **settings}
        settings.setdefault("run_dir", self._folder / f"run{len(self.watches)}")
        self.watches.append(stabwatch.attach(model, optimizer, **settings))
        return self.watches[-1]

    def finish(self) -> Run:
        """Detach the last watch and read what it wrote."""
        self.watches[-1].detach()
        return read_run(self.watches[-1].run_dir)
