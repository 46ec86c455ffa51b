"""The stages of `torch.distributed.pipelining`, as the watches of the process see them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from stabwatch.hooks.backward import LISTENERS
from stabwatch.hooks.base.entry import shielded
from stabwatch.hooks.forward import AFTER_ROOT, BEFORE_ROOT
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
    call, backward, scale = owner.forward_maybe_with_nosync, owner.backward_one_chunk, owner.scale_grads

    @functools.wraps(call)
    def forward_maybe_with_nosync(self: Any, *args: Any, **kwargs: Any) -> Any:
        around = [] if OwnCall.now else _called(self)
        for model in around:
            BEFORE_ROOT(model, args, kwargs)
        output = call(self, *args, **kwargs)
        for model in around:
            AFTER_ROOT(model, args, output)
        return output

    @functools.wraps(backward)
    def backward_one_chunk(self: Any, bwd_chunk_id: int, loss: Any = None, *args: Any, **kwargs: Any) -> Any:
        found = backward(self, bwd_chunk_id, loss, *args, **kwargs)
        if self.is_last and loss is not None:
            for context in tuple(LISTENERS):
                with shielded(context.isolation, "stage"):
                    context.isolation.run("stage", "always", context.events.stage_loss, self, loss)
        return found

    @functools.wraps(scale)
    def scale_grads(self: Any, grad_scale_factor: int) -> None:
        scale(self, grad_scale_factor)
        for context in tuple(LISTENERS):
            with shielded(context.isolation, "stage"):
                context.isolation.run("stage", "always", context.events.gradients_divided, self, grad_scale_factor)

    made: Any = module.PipelineStage  # type of most stages: it calls the model once on made-up numbers, for the shapes
    return [
        MethodPatch(owner, "forward_maybe_with_nosync", forward_maybe_with_nosync),
        MethodPatch(owner, "backward_one_chunk", backward_one_chunk),
        MethodPatch(owner, "scale_grads", scale_grads),
        *(MethodPatch(made, name, _unheard(vars(made)[name])) for name in _FOR_SHAPES if name in vars(made)),
    ]


def _called(stage: Any) -> list[nn.Module]:
    """A stage computes a micro-batch. Returns the models that are not called themselves, as their parts are stages."""
    around: list[nn.Module] = []
    for context in tuple(LISTENERS):
        with shielded(context.isolation, "stage"):
            context.isolation.run("stage", "always", context.events.stage_called, stage, around)
    return around


def _unheard(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        before, OwnCall.now = OwnCall.now, True
        try:
            return original(*args, **kwargs)
        finally:
            OwnCall.now = before

    return call
