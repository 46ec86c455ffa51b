"""The ranks of a job: how many there are, and whether something keeps their replicas of the model equal."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import torch.distributed as dist
from torch import nn

from stabwatch.distributed.stages import Stage

_attached: Counter[str] = Counter()


class Ranks:
    """The ranks of a data-parallel or sharded job, from one of them.

    model: as it is called in training, with its wrappers. mode: 'auto', or 'never' for each rank alone.
    wanted: whether there are other ranks to exchange steps with.
    coupled: whether something keeps the replicas of the model equal from the start (DistributedDataParallel,
        `replicate()`).
    """

    def __init__(self, model: nn.Module, mode: str) -> None:
        ready = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if ready else 0
        self.world = dist.get_world_size() if ready else 1
        self.wanted = mode == "auto" and self.world > 1
        self.model = model
        self.stage: Stage | None = None
        """The place of this rank in a pipeline, once a stage of it has run."""
        self.has_last_stage = False
        self.coupled = _is_coupled(model)

    def seen_in_forward(self) -> None:
        """Called during a forward, to detect a data-parallel wrapper that was added after `attach`."""
        if self.wanted and not self.coupled:
            ddp = nn.parallel.DistributedDataParallel
            self.coupled = getattr(ddp, "_active_ddp_module", None) is not None

    def wrapped(self, model: nn.Module) -> None:
        """The model is called through these wrappers, which it may have got after `attach`."""
        self.model = model
        self.coupled = self.coupled or _is_coupled(model)

    def staged(self, stage: Any, name: str) -> None:
        """A stage of a pipeline has run on this rank: the module of that name, '' for the whole model."""
        self.has_last_stage = self.has_last_stage or stage.is_last
        before = self.stage or _place_of(stage)
        self.stage = replace(before, parts=tuple(sorted((*before.parts, (stage.stage_index, name)))))

    def next_key(self, purpose: str) -> str:
        """A new prefix of keys in the job's store: the same on all ranks that ask for this purpose equally often."""
        _attached[purpose] += 1
        return f"stabwatch/{self.world}/{purpose}/{_attached[purpose]}"


def _place_of(stage: Any) -> Stage:
    """The place of the rank of a `torch.distributed.pipelining` stage."""
    group = stage.group if stage.group is not None else dist.group.WORLD
    return Stage(dist.get_rank(group), tuple(dist.get_process_group_ranks(group)))


def is_part(module: nn.Module, model: nn.Module) -> bool:
    """Is one of the two inside the other?"""
    return any(m is module for m in model.modules()) or any(m is model for m in module.modules())


def _is_coupled(model: Any) -> bool:
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return True
    try:
        from torch.distributed._composable.contract import _get_registry
    except ImportError:
        return False
    return "replicate" in (_get_registry(model) or {})
