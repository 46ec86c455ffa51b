"""The ranks of a job: how many there are, and whether something keeps their replicas of the model equal."""

from __future__ import annotations

import gc
import os
import sys
from dataclasses import replace
from typing import Any

import torch.distributed as dist
from torch import nn

from stabwatch.distributed.stages import Stage

AVERAGERS = (
    ("torch.distributed.algorithms.model_averaging.averagers", "ModelAverager"),
    ("accelerate.local_sgd", "LocalSGD"),
)
"""Modules and classes of what averages the weights of ranks now and then."""


class Ranks:
    """The ranks of a data-parallel or sharded job, from one of them.

    rank, world: the place of this rank among those that train this model, and their number. numbers: what the job calls
    them, in that order. They are some of the job's ranks only, if the model is wrapped for a group of these.
    model: as it is called in training, with its wrappers. mode: 'auto', or 'never' for each rank alone.
    wanted: whether there are other ranks to exchange steps with.
    coupled: whether something keeps the replicas of the model equal from the start (DistributedDataParallel,
        `replicate()`).
    """

    def __init__(self, model: nn.Module, mode: str) -> None:
        self._auto = mode == "auto"
        self.model = model
        self.stage: Stage | None = None
        """The place of this rank in a pipeline, once a stage of it has run."""
        self.has_last_stage = False
        self.coupled = _is_coupled(model)
        self.formed()
        self.awaited = self._auto and self.of == 1 and _launched_as() > 0
        """The launcher has other ranks before this one, and their process group is not made: it may be soon."""

    def formed(self) -> None:
        """Take the ranks that there are now; the process group may be made after `attach`."""
        ready = dist.is_available() and dist.is_initialized()
        self.number = dist.get_rank() if ready else 0
        """What the job calls this rank."""
        self.of = dist.get_world_size() if ready else 1
        """Number of ranks of the job."""
        self.numbers = _together(self.model, self.number, self.of)
        self.rank, self.world = self.numbers.index(self.number), len(self.numbers)
        self.wanted = self._auto and self.world > 1
        self.awaited = False

    def seen_in_forward(self) -> None:
        """Called during a forward, to detect a data-parallel wrapper that was added after `attach`."""
        if self.wanted and not self.coupled:
            active = getattr(nn.parallel.DistributedDataParallel, "_active_ddp_module", None)
            self.coupled = active is not None and _is_coupled(active)

    @property
    def in_no_sync(self) -> bool:
        """Was the last forward of DistributedDataParallel inside of `no_sync()`?"""
        wrapper = getattr(self.model, "_orig_mod", self.model)
        ddp = isinstance(wrapper, nn.parallel.DistributedDataParallel)
        return ddp and not getattr(wrapper, "require_forward_param_sync", True)

    def alone(self) -> None:
        """This rank goes on without the others."""
        self.rank, self.world, self.wanted = 0, 1, False

    @property
    def formed_later(self) -> bool:
        """A process group of several ranks was made after `attach`, and was not seen yet."""
        return (
            self._auto and self.of == 1 and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        )

    def wrapped(self, model: nn.Module) -> None:
        """The model is called through these wrappers, which it may have got after `attach`."""
        self.model = model
        self.coupled = self.coupled or _is_coupled(model)

    def staged(self, stage: Any, name: str) -> None:
        """A stage of a pipeline has run on this rank: the module of that name, '' for the whole model."""
        self.has_last_stage = self.has_last_stage or stage.is_last
        before = self.stage or _place_of(stage)
        self.stage = replace(before, parts=tuple(sorted((*before.parts, (stage.stage_index, name)))))

    def key(self, purpose: str) -> str:
        """A prefix of keys in the job's store, the same on all ranks."""
        group = "" if self.world == self.of else "/ranks-" + "-".join(map(str, self.numbers))
        return f"stabwatch/{self.world}/{purpose}{group}"


def _launched_as() -> int:
    """What the launcher calls this rank of several; 0 for the first one, and where there is none."""
    try:
        return int(os.environ["RANK"]) if int(os.environ["WORLD_SIZE"]) > 1 else 0
    except (KeyError, ValueError):
        return 0


def _place_of(stage: Any) -> Stage:
    """The place of the rank of a `torch.distributed.pipelining` stage."""
    group = stage.group if stage.group is not None else dist.group.WORLD
    return Stage(dist.get_rank(group), tuple(dist.get_process_group_ranks(group)))


def _together(model: nn.Module, rank: int, world: int) -> tuple[int, ...]:
    """The ranks that the wrappers of a model connect with this one; all where that is not known.

    Stages of a pipeline, and shards of tensor parallelism, are wrapped for a part of the ranks and train one model: so
    it is all ranks where such a group is a dimension of a mesh, and where there are stages.
    """
    every = tuple(range(world))
    if world < 3:
        return every
    found: set[int] = set()
    for module in model.modules():
        group = getattr(module, "process_group", None)
        if isinstance(group, dist.ProcessGroup):  # of DistributedDataParallel, and of FSDP1
            of_mesh = str(getattr(group, "group_desc", "")).startswith("mesh_")
            if of_mesh or getattr(module, "_inter_node_pg", None) is not None:
                return every
            found.update(dist.get_process_group_ranks(group))
    for p in model.parameters():
        if hasattr(p, "device_mesh"):
            found.update(root_of(p.device_mesh).mesh.flatten().tolist())
    known = rank in found and 1 < len(found) < world and not _has_stages()
    return tuple(sorted(found)) if known else every


def _has_stages() -> bool:
    """Has the training made stages of a pipeline?"""
    module = sys.modules.get("torch.distributed.pipelining.stage")
    base: Any = getattr(module, "_PipelineStageBase", None)
    return base is not None and any(issubclass(type(each), base) for each in gc.get_objects())


def root_of(mesh: Any) -> Any:
    """The mesh that a mesh of some of its dimensions was taken from."""
    if hasattr(mesh, "_get_root_mesh"):
        return mesh._get_root_mesh()
    from torch.distributed.device_mesh import _mesh_resources

    return _mesh_resources.get_root_mesh(mesh)


def is_part(module: nn.Module, model: nn.Module) -> bool:
    """Is one of the two inside the other?"""
    return any(m is module for m in model.modules()) or any(m is model for m in module.modules())


def steps_alone(model: nn.Module) -> bool:
    """Do ranks step on their own, and average their weights now and then (local SGD)?"""
    wrappers = (m for m in model.modules() if isinstance(m, nn.parallel.DistributedDataParallel))
    hooks = (hook for wrapper in wrappers for hook, _ in getattr(wrapper, "_comm_hooks", ()))
    return any(getattr(hook, "__name__", "") == "post_localSGD_hook" for hook in hooks) or _averages_weights()


def _averages_weights() -> bool:
    """Has the training made what averages weights now and then: an averager of torch's, `LocalSGD` of accelerate?"""
    kinds = tuple(getattr(sys.modules[name], kind) for name, kind in AVERAGERS if name in sys.modules)
    found = (each for each in gc.get_objects() if issubclass(type(each), kinds)) if kinds else ()
    return any(getattr(each, "enabled", True) for each in found)


def _is_coupled(model: Any) -> bool:
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return model.process_group.size() > 1  # a group of one averages nothing
    try:
        from torch.distributed._composable.contract import _get_registry
    except ImportError:
        return False
    return "replicate" in (_get_registry(model) or {})
