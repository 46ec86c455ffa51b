"""The flat parameters of FSDP1: which parameters of the model they are made of, and which part of them a rank has.

With `use_orig_params=True` the optimizer steps a flat view for each parameter; otherwise it steps the flat parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

_SHAPES: Any = WeakTensorKeyDictionary()
_FLATTENED: WeakSet[nn.Module] = WeakSet()


@dataclass(frozen=True)
class Piece:
    """One parameter inside a flat one.

    owner: the module that it belongs to. name: its name there. shape: of the whole parameter. part: what of this rank's
    flat shard belongs to it; empty where the rank has nothing of it.
    """

    owner: nn.Module
    name: str
    shape: torch.Size
    part: slice


def handles(model: nn.Module) -> Iterator[tuple[Any, Any]]:
    """(wrapper, handle) of each flat parameter below a model; nothing without FSDP1."""
    try:
        from torch.distributed.fsdp import FullyShardedDataParallel
    except ImportError:
        return
    for module in model.modules():
        handle = getattr(module, "_handle", None) if isinstance(module, FullyShardedDataParallel) else None
        if handle is not None:
            yield module, handle


def pieces(flat: Any) -> list[Piece]:
    """The parameters in a flat parameter, in its order."""
    at = 0
    found = []
    for info, shape, shard in zip(flat._param_infos, flat._shapes, flat._shard_param_infos, strict=True):
        size = int(shard.numel_in_shard or 0)
        at = int(shard.offset_in_shard) if shard.in_shard else at
        found.append(Piece(info.module, info.param_name, torch.Size(shape), slice(at, at + size)))
        at += size
    return found


def note(model: nn.Module) -> None:
    """Remember the modules that have parts of flat parameters, and the shapes of these. model: with its wrappers."""
    for _, handle in handles(model):
        flat = handle.flat_param
        for info in flat._param_infos:
            _FLATTENED.add(info.module)
        for parameter, shape in zip(flat._params or (), flat._shapes, strict=False):
            _SHAPES[parameter] = torch.Size(shape)


def is_flattened(module: nn.Module) -> bool:
    """Is a parameter of this module a part of a flat one?"""
    return module in _FLATTENED


def whole_shape(tensor: Tensor) -> torch.Size:
    """The shape of a parameter on all ranks together, if that is known; else that of the tensor."""
    spec = getattr(tensor, "_st_info", None)  # of tensor parallelism below DistributedDataParallel
    found: torch.Size = _SHAPES.get(tensor, tensor.shape) if spec is None else torch.Size(spec.shape)
    return found
