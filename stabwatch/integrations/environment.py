"""The environment variables by which `stabwatch run` reaches the program that it starts."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

STARTUP = str(Path(__file__).parent / "startup")
"""Folder of the `sitecustomize`, put first on PYTHONPATH."""
SETTINGS = "STABWATCH_SETTINGS_FILE"
"""Path of the settings file, if one was given."""
FOLDER = "STABWATCH_RUN_FOLDER"
"""Folder for the run log, if one was given."""

PREFLIGHT = "STABWATCH_PREFLIGHT"
"""Folder for the run log of a program under `stabwatch preflight`, whatever the program says."""


def add_to(environ: MutableMapping[str, str], config: Path | None, run_dir: str | None) -> None:
    """Make Python programs with this environment watched. run_dir: an absolute path, or an address."""
    entries = [STARTUP, *filter(None, [environ.get("PYTHONPATH")])]
    environ["PYTHONPATH"] = os.pathsep.join(entries)
    if config is not None:
        environ[SETTINGS] = str(config.absolute())
    if run_dir is not None:
        environ[FOLDER] = run_dir


def take_from(environ: MutableMapping[str, str]) -> None:
    """Undo `add_to`: programs started from here on are not watched."""
    entries = [e for e in environ.get("PYTHONPATH", "").split(os.pathsep) if e and e != STARTUP]
    if entries:
        environ["PYTHONPATH"] = os.pathsep.join(entries)
    else:
        environ.pop("PYTHONPATH", None)
    for name in (SETTINGS, FOLDER):
        environ.pop(name, None)
