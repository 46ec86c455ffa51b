"""The stages of `torch.distributed.pipelining`, as the watches of the process see them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from stabwatch.hooks.backward import LISTENERS
from stabwatch.hooks.base.entry import shielded
from stabwatch.hooks.patching import MethodPatch
from stabwatch.hooks.probes.directional import OwnCall

_MODULE = "torch.distributed.pipelining.stage"
_FOR_SHAPES = ("_prepare_forward_infra", "_prepare_backward_infra")


def stage_patches() -> list[MethodPatch]:
    """Patches of a stage's methods; none if the training has not imported pipelining when it attaches."""
    module: Any = sys.modules.get(_MODULE)
    owner: Any = getattr(module, "_PipelineStageBase", None)
    if owner is None:
        return []
    forward, scale = owner.forward_one_chunk, owner.scale_grads

    @functools.wraps(forward)
    def forward_one_chunk(self: Any, *args: Any, **kwargs: Any) -> Any:
        for context in tuple(LISTENERS):
            with shielded(context.isolation, "stage"):
                context.isolation.run("stage", "always", context.events.stage_called, self)
        return forward(self, *args, **kwargs)

    @functools.wraps(scale)
    def scale_grads(self: Any, grad_scale_factor: int) -> None:
        scale(self, grad_scale_factor)
        for context in tuple(LISTENERS):
            with shielded(context.isolation, "stage"):
                context.isolation.run("stage", "always", context.events.gradients_divided, self, grad_scale_factor)

    made: Any = module.PipelineStage  # type of most stages: it calls the model once on made-up numbers, for the shapes
    return [
        MethodPatch(owner, "forward_one_chunk", forward_one_chunk),
        MethodPatch(owner, "scale_grads", scale_grads),
        *(MethodPatch(made, name, _unheard(vars(made)[name])) for name in _FOR_SHAPES if name in vars(made)),
    ]


def _unheard(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        before, OwnCall.now = OwnCall.now, True
        try:
            return original(*args, **kwargs)
        finally:
            OwnCall.now = before

    return call
