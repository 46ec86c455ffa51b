"""The metadata of a run: its name, where it runs, where it is written, what is trained."""

from __future__ import annotations

import math
import os
import platform
import re
import secrets
import socket
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

import stabwatch
from stabwatch.config import Config
from stabwatch.distributed.ranks import Ranks
from stabwatch.errors import RunLogError
from stabwatch.hooks.base.probe import PROBES
from stabwatch.runlog import Meta, RunFolder
from stabwatch.runlog.labels import LABELS, Labels, labels_of, write_labels
from stabwatch.runlog.lock import RunLock
from stabwatch.runlog.reader import read_meta
from stabwatch.runtime.notices import say

LONGEST_ERROR = 400
"""Characters of an error that a run tells of how it ended."""
MOST_GROUPS = 16
"""Parameter groups whose settings are recorded."""


def run_id(config: Config) -> str:
    """The run's name: the one that is set, else the Slurm job or date and time, with six random digits."""
    if config.run and (name := as_folder_name(config.run)):
        if name != config.run:
            say(f"the run's name cannot be that of a folder; it is {name!r}.")
        return name
    job = os.environ.get("SLURM_JOB_ID")
    return (f"slurm-{job}-" if job else time.strftime("%Y%m%d-%H%M%S-")) + secrets.token_hex(3)


def as_folder_name(name: str) -> str:
    """A name of one folder directly below its root, at most 100 bytes long; '' where nothing is left."""
    name = re.sub(r"[/\\\x00-\x1f\x7f]+", "-", name)[:100]
    while len(name.encode(errors="replace")) > 100:
        name = name[:-1]
    return name.strip(" .-")


def optimizer_facts(optimizer: Any) -> dict[str, Any]:
    """Name and settings of an optimizer, each distinct set of its groups once: the data of an `optimizer` event."""
    plain = (bool, int, float, str, type(None))
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        settings = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in group.items()
            if isinstance(value, plain) or (isinstance(value, tuple) and all(isinstance(v, plain) for v in value))
        }
        if settings not in groups:
            groups.append(settings)
    return {"name": type(optimizer).__name__, "groups": groups[:MOST_GROUPS]}


def labels_in(path: Path, config: Config) -> Labels:
    """Labels of the run that a folder gets: what is set now over what an earlier attempt has left there."""
    try:
        earlier = labels_of(read_meta(path))
    except RunLogError:
        earlier = Labels()
    labels = earlier.changed(add=config.tags, name=config.name or None, notes=config.notes or None)
    if os.path.exists(path / LABELS):  # False for a path that the system refuses
        with suppress(OSError):
            write_labels(path, labels)
    return labels


def run_meta(run: str, model: nn.Module, layers: Iterable[str], ranks: Ranks, config: Config, labels: Labels) -> Meta:
    """What meta.json holds. `layers`: names of the watched modules in forward order."""
    return Meta(
        run=run,
        created=time.time(),
        host=socket.gethostname(),
        pid=os.getpid(),
        pid_started=psutil.Process().create_time(),
        world_size=ranks.world,
        rank=ranks.rank,
        versions={
            "stabwatch": stabwatch.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        model={
            "name": type(model).__name__,
            "parameters": sum(p.numel() for p in model.parameters() if not torch.nn.parameter.is_lazy(p)),
            "layers": [name for name in layers if name],
        },
        config={k: v for k, v in vars(config).items() if v is not None and k not in ("name", "tags", "notes")},
        name=labels.name,
        tags=list(labels.tags),
        notes=labels.notes,
        signals=[asdict(signal) for probe in PROBES for signal in probe.signals],
    )


def open_folder(path: Path, meta: Meta) -> RunFolder:
    """A run folder that no other process writes to.

    Where another one writes to `path`, the folder is `path-2`, `path-3` ..., and the run is named so. Where `path`
    cannot be made, it is in the system's temporary folder. Both are said on standard error.
    """
    try:
        return _claimed(path, meta)
    except (OSError, ValueError) as error:  # ValueError: a name that the locale cannot encode
        other = Path(tempfile.mkdtemp(prefix="stabwatch-")) / meta.run
        folder = _claimed(other, meta)
        say(f"the run folder cannot be made ({error}); using {other} instead.")
        return folder


def how_it_ended(error: BaseException | None) -> str:
    """Reason of a run's end. error: what has left the training, if anything."""
    if error is None or (isinstance(error, SystemExit) and not error.code):
        return "finished"
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "exception"


def _claimed(path: Path, meta: Meta) -> RunFolder:
    for number in count(1):
        suffix = "" if number == 1 else f"-{number}"
        folder = _beside(path, suffix)
        lock = RunLock.take(folder)
        if lock is not None:
            break
    if suffix:
        say(f"another run is being written to {path}; this one goes to {folder}.")
    return RunFolder(folder, replace(meta, run=meta.run + suffix), lock)


def _beside(path: Path, suffix: str) -> Path:
    """`path` with a suffix to its name; a path may be `.`, which has none."""
    whole = path.absolute()
    return whole.parent / (whole.name + suffix) if suffix else path


def learning_rate(optimizer: Any, inner: Any = None) -> float:
    """Largest learning rate of the groups, NaN where the optimizer does not tell it.

    inner: the optimizer inside this one, where that has none. A tensor on an accelerator is not read (that would wait).
    """
    several = (optimizer,) if inner is optimizer else (optimizer, inner)
    rates = [_rate(one, group) for one in several for group in getattr(one, "param_groups", ())]
    known = [float(r) for r in rates if r is not None and (not isinstance(r, Tensor) or r.device.type == "cpu")]
    return max(known, default=math.nan)


DECOUPLED = ("SGD", "AdamW")
"""Optimizers whose decay is a share of the weights: rate x decay in each step."""


def decay_per_step(optimizer: Any) -> float:
    """Largest share of the weights that decay takes in a step, over the groups; NaN where that is not known."""
    if type(optimizer).__name__ not in DECOUPLED:
        return math.nan
    shares = [
        float(group["lr"]) * float(group.get("weight_decay", 0.0))
        for group in optimizer.param_groups
        if not isinstance(group.get("lr"), Tensor | None)
    ]
    return max(shares, default=math.nan)


def _rate(optimizer: Any, group: Mapping[str, Any]) -> Any:
    """`lr` of a group; where it is None, what Adafactor of transformers says that it used."""
    rate = group.get("lr")
    used = getattr(optimizer, "_get_lr", None)
    if rate is not None or used is None or not group["params"]:
        return rate
    state = optimizer.state.get(group["params"][0], {})
    waits = any(isinstance(x, Tensor) and x.dim() == 0 and x.device.type != "cpu" for x in state.values())
    return used(group, state) if state and not waits else None


def told(error: BaseException) -> str:
    """An error in one line, cut where it is long."""
    said = " ".join(str(error).split())
    short = said if len(said) <= LONGEST_ERROR else f"{said[:LONGEST_ERROR]} ..."
    return f"{type(error).__name__}: {short}" if said else type(error).__name__
