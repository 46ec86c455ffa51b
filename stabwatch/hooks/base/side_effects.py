"""Calls a module of the user once more without side effects on the module or on random numbers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SCRIPTED = "a part of the model is TorchScript: what one more call of it changes could not be put back"
"""Why such a model is not called by stabwatch."""
_PLAIN = ("torch.nn.modules.activation", "transformers.activations")
"""Modules that define classes without random numbers and without state (except torch's RReLU, which is not called)."""


def is_plain(module: nn.Module) -> bool:
    """Can the module's `forward` be called once more without being noticed? True for classes of known libraries."""
    return type(module).__module__ in _PLAIN and not isinstance(module, nn.RReLU)


def is_scripted(module: nn.Module) -> bool:
    """Is the module TorchScript, or a part of it?"""
    return any(isinstance(part, torch.jit.ScriptModule) for part in module.modules())


@contextmanager
def restore_side_effects(
    module: nn.Module, *inputs: Tensor, seed: int | None = None, evaluating: bool = False
) -> Iterator[None]:
    """Puts back: random states of torch, numpy and Python, buffers, and attributes that `forward` sets.

    inputs: their devices' random states too. seed: torch's random numbers begin at it meanwhile. evaluating: as after
    `module.eval()`. What lies deeper, in lists or objects of the user's, is not kept.
    """
    tensors = (*inputs, *module.parameters(), *module.buffers())
    devices = sorted({x.device.index for x in tensors if x.device.type == "cuda"})
    with ExitStack() as stack:
        stack.enter_context(_random_states_kept(devices, seed))
        for part in module.modules():
            stack.callback(_put_back, part, dict(part.__dict__), dict(part._buffers), _copies(part))
            part.__dict__["training"] = part.training and not evaluating
        yield


@contextmanager
def _random_states_kept(devices: list[int], seed: int | None) -> Iterator[None]:
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            if seed is not None:
                for generator in (torch.default_generator, *(torch.cuda.default_generators[d] for d in devices)):
                    generator.manual_seed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _copies(part: nn.Module) -> list[tuple[Tensor, Tensor, int]]:
    """Tensors that may be written to in place: buffers and plain attributes, a copy of each, and its version."""
    found = [*part._buffers.values(), *part.__dict__.values()]
    return [(x, x.detach().clone(), x._version) for x in found if isinstance(x, Tensor)]


@torch.no_grad()
def _put_back(
    part: nn.Module, attributes: dict[str, Any], buffers: dict[str, Any], copies: list[tuple[Tensor, Tensor, int]]
) -> None:
    for name in part.__dict__.keys() - attributes.keys():
        del part.__dict__[name]
    part.__dict__.update(attributes)
    part._buffers.clear()
    part._buffers.update(buffers)
    for tensor, copy, version in copies:
        if tensor._version != version:
            tensor.copy_(copy)
