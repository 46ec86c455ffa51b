"""Which run folder a training goes on in, after a checkpoint or a restart."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from stabwatch.config import Config
from stabwatch.distributed.ranks import Ranks
from stabwatch.errors import ConfigError, RunLogError
from stabwatch.runlog import Event, Meta, RunFolder, RunLog, find_runs
from stabwatch.runlog.lock import RunLock
from stabwatch.runlog.schema import META
from stabwatch.runlog.stores import joined, parent_and_name, url_of
from stabwatch.runlog.upload import sent_to
from stabwatch.runtime.notices import say
from stabwatch.runtime.run_metadata import as_folder_name, labels_in, open_folder, run_id, run_meta

STATE_VERSION = 1
RUNS = "stabwatch-runs"
"""Folder of runs on this machine whose `root` is an object store."""


def launch() -> str | None:
    """Name of the torchrun that has started this process; the same after a restart of its workers."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"{run}-{socket.gethostname()}-{os.getppid()}" if run else None


def job_name(config: Config, model: nn.Module) -> str:
    """What the next attempt of a job is known by on the same host: the run that is set, torchrun, or the script."""
    script = f"{os.path.abspath(sys.argv[0])} in {os.getcwd()}"
    names = hashlib.blake2b("\n".join(name for name, _ in model.named_parameters()).encode(), digest_size=8)
    return f"{config.run or launch() or script}: {type(model).__name__} {names.hexdigest()}"


def open_run(
    run_dir: str | Path | None,
    resume: str | Path | None,
    config: Config,
    ranks: Ranks,
    model: nn.Module,
    layers: Iterable[str],
) -> tuple[RunFolder, int, str | None]:
    """The folder that this process writes its run to, claimed, and the number of the attempt (1 for a new run).

    The third is the address of an object store that the folder is copied to, if there is one.
    run_dir: the folder, where the user gave one. layers: names of the watched modules in forward order.
    """
    url = url_of(run_dir) if run_dir is not None else None
    given = Path(run_dir) if run_dir is not None else None
    if url is not None:
        given = local_root(config) / parent_and_name(url)[1]
    old = given or folder_to_resume(resume, config, ranks.rank, type(model).__name__)
    named = "" if config.run or old is None else name_of(old)
    run = named or run_id(config)
    path = old or local_root(config) / run
    if given is None and (root := url_of(config.root)) is not None:
        url = joined(root, path.name)
    folder = open_folder(path, run_meta(run, model, layers, ranks, config, labels_in(path, config)))
    attempt = starts_so_far(folder.path) + 1
    if attempt > 1:
        say(f"the run goes on in {folder.path}, attempt {attempt}.")
    if url is not None:
        return folder, attempt, joined(parent_and_name(url)[0], folder.path.name)
    return folder, attempt, sent_to(folder.path)


def local_root(config: Config) -> Path:
    """The folder of runs on this machine, also where they are sent to an object store."""
    return Path(config.root if url_of(config.root) is None else RUNS)


def folder_to_resume(resume: str | Path | None, config: Config, rank: int, model: str) -> Path | None:
    """The folder of the run that goes on; None for a new run.

    resume: a folder; or 'auto', for the newest run below `root` with the same `run` (or, where that is not set, of the
    same model) whose process is gone and that has not finished. Without it, only a restart by torchrun goes on.
    """
    if resume is not None and resume != "auto":
        if not has_run(Path(resume)):
            say(f"there is no run in {resume} to go on with; a new one begins there.")
        return Path(resume)
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if resume is None and not restarted:
        return None
    for path in _newest(local_root(config)):
        meta, last = _state(path)
        if meta is None or meta.rank != rank or not _is_free(path):
            continue
        ours = launch() is not None and "start" in last and last["start"].data.get("launch") == launch()
        same = meta.run == as_folder_name(config.run) if config.run else meta.model.get("name") == model
        ended = last["end"].data.get("reason") if "end" in last else None
        if (restarted and ours) or (resume == "auto" and same and ended != "finished"):
            return path
    if resume == "auto":
        say(f"no run to go on with in {config.root}; a new one begins.")
    return None


def run_state(run: str, run_dir: Path, step: int) -> dict[str, Any]:
    """What a checkpoint keeps of a run. step: number of the next step."""
    return {"stabwatch": STATE_VERSION, "run": run, "run_dir": str(run_dir.absolute()), "step": step}


def read_state(state: Mapping[str, Any]) -> tuple[Path, int]:
    """The folder and the next step of a run, from what a checkpoint kept. Raises ConfigError."""
    if not isinstance(state, Mapping) or state.get("stabwatch") != STATE_VERSION:
        raise ConfigError("This is no state of a watch: give what `Watch.state_dict()` returned.")
    return Path(state["run_dir"]), int(state["step"])


def has_run(folder: Path) -> bool:
    """Is there a run in a folder, which a training can go on with?"""
    return os.path.exists(folder / META)


def starts_so_far(path: Path) -> int:
    """Number of start events in a run folder."""
    try:
        return sum(event.kind == "start" for event in RunLog(path).poll_events())
    except RunLogError:
        return 0


def name_of(path: Path) -> str:
    """Name of the run in a folder; '' if there is none."""
    meta, _ = _state(path)
    return meta.run if meta is not None else ""


def _newest(root: Path) -> list[Path]:
    try:
        return find_runs([root])[::-1] if root.is_dir() else []
    except RunLogError:
        return []


def _state(path: Path) -> tuple[Meta | None, dict[str, Event]]:
    """Metadata, and the last start event and the end event after it."""
    try:
        log = RunLog(path)
        events = log.poll_events()
    except RunLogError:
        return None, {}
    last: dict[str, Event] = {}
    for event in events:
        if event.kind == "start":
            last = {"start": event}
        elif event.kind == "end":
            last.setdefault("end", event)
    return log.meta, last


def _is_free(path: Path) -> bool:
    lock = RunLock.take(path)
    if lock is None:
        return False
    lock.release()
    return True
