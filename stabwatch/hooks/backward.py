"""Backward passes and the gradient scaler, as the watches of the process hear them.

Which watch a backward pass belongs to is seen at the parameters: see `TrainedLoss`. Each wrapper calls the original
with its arguments unchanged, and returns the result unchanged.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.entry import shielded, unseen_by_modes
from stabwatch.hooks.cursor import CURSOR
from stabwatch.hooks.losses import note_derivative
from stabwatch.hooks.patching import MethodPatch, Patch, note_originals
from stabwatch.hooks.probes.directional import OwnCall
from stabwatch.hooks.probes.trained_loss import RunningBackward, remember_scaling, scale_of, scalers_used

_backward = torch.autograd.backward
_grad = torch.autograd.grad

EVALUATING = "the model was called, but not in training mode: call `model.train()`"
NO_ROOT = "compiled parts of the model were called, but never the model itself: attach what the training loop calls"

LISTENERS: list[TapContext] = []
"""The contexts of all watches that are attached."""


def unheard() -> bool:
    """True for calls that are no training: inside of a backward pass, and calls of our own."""
    return OwnCall.now or torch._C._current_graph_task_id() != -1


@functools.wraps(_backward)
def backward(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> None:
    heard: Sequence[TapContext] = () if torch.compiler.is_dynamo_compiling() else tuple(LISTENERS)
    if not heard:
        _backward(tensors, grad_tensors, *args, **kwargs)
        return
    if len(heard) > 1:
        heard = _of_this_thread(heard)
    tensors = tuple(tensors) if isinstance(tensors, Iterator) else tensors  # torch reads it too
    given: tuple[list[Any], list[Any] | None] | None = None
    with shielded(heard[0].isolation, "loss"):
        given = None if unheard() else _begins(heard, tensors, grad_tensors)
    try:
        _backward(tensors, grad_tensors, *args, **kwargs)
    finally:
        if given is not None:
            RunningBackward.scale = None
    if given is not None:
        with shielded(heard[0].isolation, "loss"):
            _ends(heard, *given)


def leave_uncompiled() -> None:
    """Compilers call the wrappers as they are, as they do with the originals. Asked for when one begins to trace."""
    note_originals()
    skip = getattr(sys.modules.get("torch._dynamo.eval_frame"), "skip_code", None)
    wrappers: tuple[Any, ...] = (backward, grad)
    if skip is not None:
        for wrapper in wrappers:
            skip(wrapper.__code__)


def _of_this_thread(heard: Sequence[TapContext]) -> Sequence[TapContext]:
    """The watches whose models this thread has called, if it has called any.

    Others may have a backward pass of their own now, which writes into the gradients that they would look at.
    """
    here = threading.get_ident()
    return [context for context in heard if context.thread in (0, here)] or heard


def _begins(heard: Sequence[TapContext], tensors: Any, grad_tensors: Any) -> tuple[list[Any], list[Any] | None]:
    """Tell all watches of a backward pass; its roots, and the gradients that it begins with."""
    _note_why_unseen()
    _end_parts(heard)
    roots, gradients = _roots(tensors, grad_tensors)
    for context in heard:
        with shielded(context.isolation, "loss"), unseen_by_modes():
            context.events.backward_begins(roots, gradients)
    if scalers_used():
        with shielded(heard[0].isolation, "loss"):
            RunningBackward.scale = scale_of(roots)
    return roots, gradients


def _ends(heard: Sequence[TapContext], roots: Sequence[Tensor], gradients: Sequence[Tensor] | None) -> None:
    """Tell all watches of its end."""
    reached: list[TapContext] = []
    for context in heard:
        with shielded(context.isolation, "loss"), unseen_by_modes():
            context.isolation.run("loss", "always", _ended, context, roots, gradients, reached)
    if not reached and len(heard) == 1:
        context = heard[0]
        with shielded(context.isolation, "loss"), unseen_by_modes():
            context.isolation.run("loss", "always", context.events.backward_unclear, roots, gradients)


def _end_parts(heard: Sequence[TapContext]) -> None:
    """Where the parts of a model are called in place of the model, its forward is over."""
    for context in heard:
        context.isolation.run("forward", "always", context.parts.backward_begins, context.forwards)


def _note_why_unseen() -> None:
    """A backward starts, and no forward was measured before it: this may be so in the whole run."""
    root, site = CURSOR.root, CURSOR.site
    if root is not None and root.flags.recording:
        return
    if site is not None and not site.context.parts.seen:  # the end of the model's forward would have reset it
        site.context.isolation.run("coverage", "always", site.context.unmeasured, "forward", "", NO_ROOT)
    elif root is not None and root.flags.open:
        root.context.isolation.run("coverage", "always", root.context.unmeasured, "forward", "", EVALUATING)


def _ended(
    context: TapContext, roots: Sequence[Tensor], gradients: Sequence[Tensor] | None, reached: list[TapContext]
) -> None:
    if context.events.backward_ended(roots, gradients):
        reached.append(context)


@functools.wraps(_grad)
def grad(outputs: Any, inputs: Any, grad_outputs: Any = None, *args: Any, **kwargs: Any) -> Any:
    keeps_graph = kwargs.get("create_graph", args[1] if len(args) > 1 else False)
    listeners = () if torch.compiler.is_dynamo_compiling() else tuple(LISTENERS)
    heard = () if keeps_graph else listeners
    if heard:
        outputs = tuple(outputs) if isinstance(outputs, Iterator) else outputs
        inputs = tuple(inputs) if isinstance(inputs, Iterator) else inputs  # `model.parameters()`, say
    found = _grad(outputs, inputs, grad_outputs, *args, **kwargs)
    if heard:
        with shielded(heard[0].isolation, "loss"):
            _taken(heard, outputs, inputs, grad_outputs)
    elif listeners and not unheard():
        with shielded(listeners[0].isolation, "loss"):
            note_derivative(found)
    return found


def _taken(heard: Sequence[TapContext], outputs: Any, inputs: Any, grad_outputs: Any) -> None:
    """Tell all watches of gradients that were asked for, and not put into the parameters."""
    if unheard():
        return
    roots, given = _roots(outputs, grad_outputs)
    _end_parts(heard)
    for context in heard:
        with shielded(context.isolation, "loss"), unseen_by_modes():
            context.events.gradients_taken(roots, given, _listed(inputs))


def _roots(tensors: Any, gradients: Any) -> tuple[list[Any], list[Any] | None]:
    """Where a backward pass begins, and with which gradients; nothing of an edge of the graph, which has no number."""
    roots = _listed(tensors)
    if any(isinstance(root, GradientEdge) for root in roots):
        return [], None
    return roots, None if gradients is None else _listed(gradients)


def _listed(tensors: Any) -> list[Any]:
    """What torch takes: one tensor or edge of the graph, or any iterable of them."""
    return [tensors] if isinstance(tensors, Tensor | GradientEdge) else list(tensors)


def scale_patches() -> list[MethodPatch]:
    """Patches of `scale`, in each class of gradient scalers that has a method of its own."""
    owners = [torch.amp.GradScaler]
    for owner in owners:
        owners += owner.__subclasses__()
    return [MethodPatch(o, "scale", _remembering(o.__dict__["scale"])) for o in owners if "scale" in o.__dict__]


def _remembering(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def scale(self: Any, outputs: Any) -> Any:
        scaled = original(self, outputs)
        if LISTENERS and not torch.compiler.is_dynamo_compiling():
            LISTENERS[0].isolation.run(
                "scaler", "always", remember_scaling, outputs, scaled, getattr(self, "_scale", None), self
            )
        return scaled

    return scale


BACKWARD_PATCHES = (Patch(_backward, backward), Patch(_grad, grad))
