"""The parameters of a model that are watched, each with the layer that it belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from stabwatch.distributed.flat import pieces, whole_shape
from stabwatch.hooks.base.naming import named_parameters
from stabwatch.hooks.base.tensors import local
from stabwatch.hooks.base.tree import ModuleTree


@dataclass(frozen=True)
class TrackedParameter:
    """A parameter as its author knows it.

    layer: the nearest watched module that owns it. name: unique. parameter: what the optimizer steps. shape: of the
    whole parameter, on all ranks together; None while it is lazy. part: where it is in this rank's shard of
    `parameter`, if that is a flat parameter made of several.
    """

    layer: str
    name: str
    parameter: nn.Parameter
    module: nn.Module | None
    shape: torch.Size | None
    part: slice | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """What this rank has of it in `parameter`, or in a tensor that goes with it: its gradient, say."""
        shard = local(tensor)
        return shard if self.part is None else shard.reshape(-1)[self.part]

    @property
    def elements(self) -> int:
        """How many numbers of it this rank has."""
        return 0 if is_lazy(self.parameter) else self.of(self.parameter).numel()


def tracked_parameters(model: nn.Module, sites: set[str], kept: frozenset[int] = frozenset()) -> list[TrackedParameter]:
    """Every parameter that is trained, or in `kept` (ids). sites: names of the watched modules."""
    return list(_tracked(model, sites, kept))


def _tracked(model: nn.Module, sites: set[str], kept: frozenset[int]) -> Iterator[TrackedParameter]:
    tree = ModuleTree(model)
    names = {id(module): name for name, module in tree.modules.items()}
    owners = {id(p): module for module in model.modules() for p in module.parameters(recurse=False)}

    def layer(owner: str) -> str:
        return next((name for name in (owner, *tree.above(owner)) if name in sites), "")

    for name, owner, p in named_parameters(model):
        if (not p.requires_grad and id(p) not in kept) or hasattr(p, "ds_tensor"):
            continue  # frozen, or kept in parts by ZeRO's third stage: empty where the watch looks
        if not hasattr(p, "_shard_param_infos"):
            shape = None if is_lazy(p) else whole_shape(p)
            yield TrackedParameter(layer(owner), name, p, owners.get(id(p)), shape)
            continue
        for piece in pieces(p):
            inside = names.get(id(piece.owner), owner)
            full = f"{inside}.{piece.name}" if inside else piece.name
            yield TrackedParameter(layer(inside), full, p, piece.owner, piece.shape, piece.part)
