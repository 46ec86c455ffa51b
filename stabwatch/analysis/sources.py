"""Opens run folders and logs of other trainers as record sources."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from stabwatch.analysis.readers.file import Progress
from stabwatch.analysis.readers.records import ForeignLog
from stabwatch.errors import RunLogError
from stabwatch.runlog import RunLog, beside_targets, find_run, find_runs, holds_run
from stabwatch.runlog.mirror import local
from stabwatch.runlog.source import Source


def open_source(path: Path, progress: Progress | None = None) -> list[Source]:
    """Open one path: a run folder, the newest one in a folder, or the runs of another trainer's log.

    It may be the address of an object store.

    progress: called with the bytes read of such a log, and its size. Raises RunLogError and LogError.
    """
    path = local(path)
    if path.is_file() or (path.exists() and not path.is_dir()):
        return _foreign(path, progress)
    try:
        return [RunLog(find_run(path))]
    except RunLogError:
        if path.is_dir() and not holds_run(path) and _may_hold_log(path):
            return _foreign(path, progress)
        raise


def open_sources(paths: Iterable[Path], progress: Callable[[Path], Progress] | None = None) -> list[Source]:
    """Open all runs at some paths: run folders and folders of them; logs of other trainers and folders with one.

    progress: returns, for the path of such a log, a callback that takes the bytes read and the size.

    Raises RunLogError and LogError.
    """
    found: list[Source] = []
    folders: list[Path] = []
    for path in map(local, beside_targets(list(paths))):
        if path.exists() and not (path.is_dir() and holds_run(path)):
            found += _foreign(path, progress and progress(path))
        else:
            folders.append(path)
    folders_found: list[Source] = [RunLog(folder) for folder in find_runs(folders)]
    return folders_found + found


def _foreign(path: Path, progress: Progress | None) -> list[Source]:
    from stabwatch.analysis.readers import read_log

    log = read_log(path, progress)
    return [ForeignLog(path, run, log.format, log.notes) for run in log.runs]


def _may_hold_log(folder: Path) -> bool:
    from stabwatch.analysis.readers.mlflow_store import holds_store

    return any(entry.is_file() for entry in folder.iterdir()) or holds_store(folder)


def named(logs: Sequence[Source]) -> list[str]:
    """Names of runs; for names that are not unique, the path distinguishes them."""
    names: list[Any] = [log.meta.run for log in logs]
    return [name if names.count(name) == 1 else str(log.path) for name, log in zip(names, logs, strict=True)]
