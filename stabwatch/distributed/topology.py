"""Which ranks have which parameters, by their placements, so that each number is counted once.

A parameter is *whole* if every rank has all of it; otherwise it is a *part*. If a model has parts, each is counted by
the first of the ranks that have the same part. Known are DTensor placements (FSDP2, hybrid meshes, tensor parallelism),
the handles of FSDP1, and what DistributedDataParallel is told to ignore. Everything else is taken to be whole.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, Protocol

import torch.distributed as dist
from torch import nn

from stabwatch.distributed.flat import handles
from stabwatch.distributed.health import REPLICATED
from stabwatch.distributed.layout import Kind
from stabwatch.distributed.ranks import root_of
from stabwatch.distributed.stages import Stage
from stabwatch.distributed.summands import Place
from stabwatch.distributed.unreduced import holders
from stabwatch.runlog import Accumulator

Placed = tuple[bool, bool]
"""(it is a part, this rank counts it)"""
Spread = tuple[Any, Sequence[Any]]
"""Mesh and placements of a parameter."""


class Tracked(Protocol):
    """A parameter that is watched. elements: how many numbers of it this rank has."""

    @property
    def layer(self) -> str:
        """Name of its layer."""

    @property
    def name(self) -> str:
        """Its name in the model."""

    @property
    def parameter(self) -> nn.Parameter:
        """What the optimizer steps."""

    @property
    def elements(self) -> int:
        """How many numbers of it this rank has."""


class Topology:
    """Placements as they are when first asked for: a model may be sharded after `attach`.

    model: with its wrappers. tracked: gives the parameters that are watched. with_state: gives the layers of which this
    rank has optimizer state, if that is split over ranks (ZeRO), else None. stage: the place of this rank in a
    pipeline: ranks of other stages have other parameters. first_rank: what the job calls the first rank.
    """

    def __init__(
        self,
        model: nn.Module,
        rank: int,
        world: int,
        tracked: Callable[[], Iterable[Tracked]] = tuple,
        with_state: Callable[[], frozenset[str] | None] = lambda: None,
        stage: Callable[[], Stage | None] = lambda: None,
        first_rank: int = 0,
    ) -> None:
        self._first = first_rank
        self._stage = stage
        self._model = model
        self._rank, self._world = rank, world
        self._tracked = tracked
        self._with_state = with_state

    @cached_property
    def _placed(self) -> dict[int, Placed]:
        if self._world == 1:
            return {}
        found = {id(p): placed for p, placed in _of_fsdp1(self._model, self._first)}
        for p, spread in self._spread:
            found[id(p)] = _of_dtensor(spread, self._stage(), self._first)
        return found | dict.fromkeys(_left_out_of_ddp(self._model), (True, True))

    @cached_property
    def _spread(self) -> list[tuple[nn.Parameter, Spread]]:
        """DTensors, and what is a DTensor while the model runs."""
        watched = {id(t.parameter): t.parameter for t in self._tracked()}
        every = watched | {id(p): p for p in self._model.parameters()}
        return [(p, spread) for p in every.values() if (spread := _spread_of(p)) is not None]

    @cached_property
    def sharded(self) -> bool:
        """Some rank does not hold the whole model."""
        return any(part for part, _ in self._placed.values())

    @cached_property
    def unaveraged(self) -> list[str]:
        """Names of the parameters that `fully_shard` has left out of a model: it does not average their gradients."""
        kept_by = holders(self._model) if self._world > 1 else {}
        spread = {id(p) for p, _ in self._spread} if kept_by else set()
        return [t.name for t in self._tracked() if id(t.parameter) not in kept_by.keys() | spread] if kept_by else []

    @cached_property
    def sharing(self) -> tuple[int, ...]:
        """The ranks that are given the same data as this one, as the job calls them: those of its tensor parallelism.

        None where there is no other, or where another such group has the same parameters and comes first.
        """
        found: Counter[tuple[int, ...]] = Counter()
        for mesh, dims in self._split:
            if _is_first(mesh, dims, self._stage(), self._first):
                place = tuple(slice(None) if d in dims else c for d, c in enumerate(mesh.get_coordinate()))
                found[tuple(sorted(mesh.mesh[place].flatten().tolist()))] += 1
        return found.most_common(1)[0][0] if found else ()

    def own_data(self, coupled: bool) -> bool:
        """Should each rank be given data of its own? coupled: something averages the gradients of all ranks."""
        return self._world > 1 and (coupled or self._has_fsdp) and not self._split

    @cached_property
    def _split(self) -> list[tuple[Any, frozenset[int]]]:
        """Of parameters that are split by something else than data parallelism, the mesh, and in which dimensions."""
        spread = self._spread if self._world > 1 else []
        kept_by = holders(self._model) if spread else {}
        found = []
        for p, (mesh, placements) in spread:
            if mesh.get_coordinate() is not None:
                data = _data_ranks(kept_by.get(id(p)))
                shards = (d for d, placement in enumerate(placements) if not placement.is_replicate())
                dims = frozenset(d for d in shards if not any(_along(mesh, d) <= each for each in data))
                found += [(mesh, dims)] if dims else []
        return found

    def has_replicas(self, module: nn.Module, name: str, tensor: Any) -> bool:
        """Should all ranks have the same here? name: of the parameter or buffer in this module.

        Not if it is a part, nor if nothing makes it equal: what DistributedDataParallel or FSDP leaves out.
        """
        part, _ = self._placed.get(id(tensor), (False, False))
        if self._world == 1 or part or (id(module), name) in self._left_out:
            return False
        averaged = _spread_of(tensor) is not None or not isinstance(tensor, nn.Parameter)
        return averaged or not tensor.requires_grad or not self._has_fsdp

    @cached_property
    def _left_out(self) -> frozenset[tuple[int, str]]:
        """Modules (ids) and names in them of what DistributedDataParallel ignores."""
        return frozenset(_ignored_by_ddp(self._model))

    @cached_property
    def _has_fsdp(self) -> bool:
        return bool(holders(self._model)) or next(handles(self._model), None) is not None

    def counts(self, parameter: nn.Parameter) -> bool:
        """Whether this rank adds its part of this parameter to the model's sums."""
        if not self.sharded:
            return True
        _ = self._held  # now, at an optimizer's step: FSDP1 has whole parameters at other times
        return self._placed.get(id(parameter), (False, self._rank == 0))[1]

    def place_of(self, gradient: Any) -> Place | None:
        """Where in a gradient (a DTensor) that is a sum over ranks the summand of this rank belongs.

        Ranks are called as in the job. It is not known (None) of anything but sums.
        """
        mesh, placements = gradient.device_mesh, gradient.placements
        coordinate = mesh.get_coordinate()
        known = all(_is_sum(p) if p.is_partial() else p.is_replicate() or p.is_shard() for p in placements)
        if self._world == 1 or coordinate is None or not known:
            return None
        dims, shard, shards = list(gradient.shape), 0, 1
        for i, placement in enumerate(placements):
            if placement.is_shard():
                dims[placement.dim] = -(-dims[placement.dim] // mesh.size(i))
                shard, shards = shard * mesh.size(i) + coordinate[i], shards * mesh.size(i)
        first = all(c == 0 for c, placement in zip(coordinate, placements, strict=True) if placement.is_replicate())
        if not first or not _first_outside(mesh, self._stage(), self._first):
            return Place((), shard, shards, math.prod(dims))
        place = tuple(0 if placement.is_replicate() else slice(None) for placement in placements)
        return Place(tuple(sorted(mesh.mesh[place].flatten().tolist())), shard, shards, math.prod(dims))

    @cached_property
    def _held(self) -> frozenset[str]:
        """Layers of which this rank counts something."""
        placed, other = self._placed, (False, self._rank == 0)
        mine = [t for t in self._tracked() if placed.get(id(t.parameter), other)[1]]
        return frozenset(t.layer for t in mine if t.elements)

    def is_left(self, cell: Accumulator) -> bool:
        """Is it of parameters that another rank counts?"""
        return self.sharded and cell.tap in REPLICATED and bool(cell.site) and cell.site not in self._held

    def kinds(self, cells: Iterable[Accumulator]) -> tuple[dict[Accumulator, Kind], frozenset[Accumulator]]:
        """Kinds of accumulators over ranks (see layout.py), and the parts of which this rank has any."""
        kinds: dict[Accumulator, Kind] = {}
        held, with_state = self._held, self._with_state()
        holds = set()
        for cell in cells:
            whole_step = (cell.tap, cell.reduction) == ("step", "descent")
            if cell.reduction in ("clip", "host_count", "reach") and cell.tap in REPLICATED:
                kinds[cell] = "replicated"
            elif cell.tap == "optimizer" and with_state is not None:
                kinds[cell] = "part"
                if cell.site in with_state:
                    holds.add(cell)
            elif cell.tap in REPLICATED or (whole_step and self.sharded):
                kinds[cell] = "part" if self.sharded else "replicated"
                if self.sharded and (cell.site in held or (whole_step and held)):
                    holds.add(cell)
        return kinds, frozenset(holds)


def _ignored_by_ddp(model: nn.Module) -> Iterable[tuple[int, str]]:
    for wrapper in model.modules():
        if isinstance(wrapper, nn.parallel.DistributedDataParallel):
            for path in wrapper.parameters_to_ignore:
                owner, _, name = path.rpartition(".")
                with suppress(AttributeError):
                    yield id(wrapper.module.get_submodule(owner)), name


def _left_out_of_ddp(model: nn.Module) -> Iterable[int]:
    """Ids of the parameters that DistributedDataParallel ignores: each rank has some of its own (experts)."""
    for wrapper in model.modules():
        if isinstance(wrapper, nn.parallel.DistributedDataParallel):
            left_out = wrapper.parameters_to_ignore
            yield from (id(p) for name, p in wrapper.module.named_parameters() if name in left_out and p.requires_grad)


def _is_sum(placement: Any) -> bool:
    """Of a Partial placement: are the summands just to be added up?"""
    return type(placement).__name__ == "Partial" and placement.reduce_op == "sum"


def _along(mesh: Any, dim: int) -> set[int]:
    """The ranks along one dimension of a mesh, through this one."""
    coordinate = mesh.get_coordinate()
    place = (*coordinate[:dim], slice(None), *coordinate[dim + 1 :])
    return set(mesh.mesh[place].tolist())


def _data_ranks(holder: Any) -> list[set[int]]:
    """The ranks over which FSDP2 has sharded a parameter, and over which it holds replicas: they have other data."""
    info = getattr(holder, "mesh_info", None)
    groups = [getattr(info, f"{kind}_process_group", None) for kind in ("shard", "replicate")]
    return [set(dist.get_process_group_ranks(group)) for group in groups if group is not None]


def _is_first(mesh: Any, dims: frozenset[int], stage: Stage | None, first_rank: int) -> bool:
    """Of the groups along these dimensions, this rank's is the first."""
    inside = all(c == 0 for d, c in enumerate(mesh.get_coordinate()) if d not in dims)
    return inside and _first_outside(mesh, stage, first_rank)


def _spread_of(p: Any) -> Spread | None:
    """Mesh and placements of a parameter that is spread over ranks, as far as it says so itself."""
    if hasattr(p, "device_mesh") and hasattr(p, "placements"):
        return p.device_mesh, p.placements
    spec = getattr(p, "_st_info", None)  # of tensor parallelism below DistributedDataParallel
    return None if spec is None else (spec.mesh, spec.placements)


def _of_dtensor(spread: Spread, stage: Stage | None, first_rank: int) -> Placed:
    mesh, placements = spread
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return True, False
    part = any(not placement.is_replicate() for placement in placements)
    first = all(c == 0 for c, placement in zip(coordinate, placements, strict=True) if placement.is_replicate())
    return part, first and _first_outside(mesh, stage, first_rank)


def _first_outside(mesh: Any, stage: Stage | None, first_rank: int) -> bool:
    """Of the ranks that hold the same in other slices of the root mesh, this is the first.

    Without a root mesh over them, it is the mesh in which the first of all ranks is.
    """
    root = root_of(mesh)
    names, outer = mesh.mesh_dim_names, root.mesh_dim_names
    if root is mesh or names is None or outer is None or not set(names) <= set(outer):
        return stage is not None or bool((mesh.mesh == first_rank).any())
    coordinate = root.get_coordinate()
    others = [name for name in outer if name not in names and not _is_pipeline(root, name, stage)]
    return all(c == 0 for c, name in zip(coordinate, outer, strict=True) if name in others)


def _is_pipeline(root: Any, name: str, stage: Stage | None) -> bool:
    """Are the ranks along a dimension of a mesh the stages of this rank's pipeline?"""
    return stage is not None and tuple(dist.get_process_group_ranks(root.get_group(name))) == stage.ranks


def _of_fsdp1(model: nn.Module, first_rank: int) -> Iterable[tuple[Any, Placed]]:
    for wrapper, handle in handles(model):
        strategy = wrapper.sharding_strategy.name
        part = strategy != "NO_SHARD"
        if "HYBRID" in strategy:
            first = dist.get_rank(wrapper._inter_node_pg) == 0
        else:
            first = first_rank in dist.get_process_group_ranks(wrapper.process_group)
        for p in (handle.flat_param, *(handle.flat_param._params or ())):
            yield p, (part, first if part else dist.get_rank() == first_rank)
