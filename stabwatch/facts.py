"""The static facts of a run: who it is, where it runs, what is trained."""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Iterable
from dataclasses import asdict

import psutil
import torch
from torch import nn

import stabwatch
from stabwatch.config import Config
from stabwatch.plugins import PLUGINS
from stabwatch.ranks import Ranks
from stabwatch.runlog import Meta


def run_id(config: Config) -> str:
    """The run's name: given, else the job's, else date, time and pid."""
    if config.run:
        return config.run
    job = os.environ.get("SLURM_JOB_ID")
    return f"slurm-{job}" if job else time.strftime("%Y%m%d-%H%M%S-") + str(os.getpid())


def run_meta(run: str, model: nn.Module, layers: Iterable[str], ranks: Ranks, config: Config) -> Meta:
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
            "parameters": sum(p.numel() for p in model.parameters()),
            "layers": [name for name in layers if name],
        },
        config={name: value for name, value in vars(config).items() if value is not None},
        signals=[asdict(plugin.signal) for plugin in PLUGINS.values()],
    )
