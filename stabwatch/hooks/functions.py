"""Calls of functions: attention, the loss, clipping, `backward`, the gradient scaler.

Each wrapper calls the original with its arguments unchanged, and returns the result unchanged.
The wrappers are installed while at least one watch is attached.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabwatch.hooks import compiled
from stabwatch.hooks.backward import BACKWARD_PATCHES, LISTENERS, scale_patches
from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.entry import observed, runs_for_real, shielded, unseen_by_modes
from stabwatch.hooks.base.loss_call import LossCall
from stabwatch.hooks.base.sites import Site
from stabwatch.hooks.cursor import CURSOR, caller, in_backward, last_called, listening
from stabwatch.hooks.drawing import DRAWING_PATCHES
from stabwatch.hooks.leaving import LEAVING_PATCHES
from stabwatch.hooks.loaders import LOADER_PATCHES
from stabwatch.hooks.losses import LOSS_PATCHES, note_leak
from stabwatch.hooks.patching import (
    SOFTMAX_METHOD,
    KeptReferences,
    MethodPatch,
    Patch,
    install_patches,
    remove_patches,
)
from stabwatch.hooks.pickling import pickling_patches
from stabwatch.hooks.pipeline import stage_patches
from stabwatch.hooks.presence import without_hooks
from stabwatch.hooks.probes import attention, loss
from stabwatch.kernels.where import is_fake

_sdpa = F.scaled_dot_product_attention
_softmax = F.softmax
_cross_entropy = F.cross_entropy
_create_script_module: Any = torch.jit._recursive.create_script_module
_clip_grad_norm_ = torch.nn.utils.clip_grad_norm_
_clip_grad_value_ = torch.nn.utils.clip_grad_value_
_scaler_update = torch.amp.GradScaler.update


def _measuring() -> Site | None:
    """The caller of a function, if its calls are measured now. Only asked while somebody is `listening`."""
    if in_backward() or not runs_for_real():
        if torch._C._functorch.peek_interpreter_stack() is not None and (site := caller()) is not None:
            site.context.unmeasured(attention.SOFTMAX, site.name, attention.IN_TRANSFORM)
        return None
    site = caller()
    return site if site is not None and site.flags.recording else None


def _saw_attention(
    out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **kwargs: Any,
) -> None:
    site = _measuring()
    if site is None or not query.numel() or not key.numel():
        return
    if site.flags.sampled:
        given = site.context.input.attention
        site.context.isolation.run("token_order", "sampled", given, query, key, attn_mask, is_causal)
    with unseen_by_modes():
        run, call = site.context.isolation.run, (query, key, attn_mask)
        run(attention.BRACKET.name, "always", attention.note_call, site, out, *call, is_causal)
        if site.flags.deep:
            run("attention_call", "deep", attention.measure, site, *call, is_causal, scale)


def _traced_attention(
    out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **kwargs: Any,
) -> None:
    site = CURSOR.site
    if site is not None and not compiled.in_subgraph() and site.flags.in_forward and site.flags.sampled:
        call = attention.as_heads(query, key, attn_mask)
        if not compiled.opaque(query):
            attention.exact(site, *call, is_causal, scale)
        else:
            compiled.tap_attention(site, *call, is_causal, scale)


def _saw_softmax(out: Tensor, input: Tensor, dim: Any = None, *args: Any, **kwargs: Any) -> None:
    if CURSOR.root is not None and CURSOR.root.context.isolation.running:
        return  # a probe's own
    site = _measuring() if SOFTMAX_METHOD.installed else None
    if site is None:
        if runs_for_real():  # the rest of the forward may be no part of a transform
            SOFTMAX_METHOD.set_installed(False)  # an exception may have left the forward
    elif input.numel():
        if site.flags.sampled:
            site.context.isolation.run("token_order", "sampled", attention.weights_of, site, out, input, dim)
            site.context.isolation.run("leak", "sampled", site.context.input.softmax, input, dim)
        if site.flags.deep:
            with unseen_by_modes():
                site.context.isolate(attention.EXACT, attention.softmax_of, site, input, dim)


def _traced_softmax(out: Tensor, input: Tensor, dim: Any = None, *args: Any, **kwargs: Any) -> None:
    site = CURSOR.site
    if site is None or not site.attention_like or compiled.in_subgraph():
        return
    rows = attention.over_keys(site, input, dim) if input.dim() >= 3 else None
    if rows is not None and site.flags.in_forward and site.flags.sampled:
        attention.exact_of_scores(site, rows)


def _saw_nothing(out: Tensor, *args: Any, **kwargs: Any) -> None:
    """`F.softmax` calls `Tensor.softmax`, which is seen."""


scaled_dot_product_attention = observed(_sdpa, _saw_attention, _traced_attention, listening)
scaled_dot_product_attention.__module__ = F.__name__  # where a pickle by name finds it
softmax = observed(_softmax, _saw_nothing, _traced_softmax, listening)
torch_softmax = observed(torch.softmax, _saw_softmax, None, listening)
torch_softmax.__module__, torch_softmax.__qualname__ = torch.__name__, "softmax"
special_softmax = observed(torch.special.softmax, _saw_softmax, None, listening)
special_softmax.__module__, special_softmax.__qualname__ = torch.special.__name__, "softmax"
special_softmax.__name__ = "softmax"
SOFTMAX_METHOD.set_method(torch.Tensor, "softmax", observed(torch.Tensor.softmax, _saw_softmax, None, listening))


def _saw_cross_entropy(out: Tensor, input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> None:
    root = last_called()
    if root is None or not root.flags.recording or not torch.is_grad_enabled():
        return
    if not in_backward() and not is_fake(input) and runs_for_real():
        with unseen_by_modes():
            context = root.context
            context.isolation.run("loss", "always", loss.cross_entropy, context, out, input, target, args, kwargs)
            if context.flags.sampled:
                context.isolation.run("leak", "sampled", note_leak, context, target)
            if context.keeps_loss_call and not args:
                context.loss_call = LossCall.seen(_cross_entropy, input, target, kwargs)


def _set_loss_in_graph(root: Site) -> None:
    root.flags.loss_in_graph = True


def _traced_cross_entropy(out: Tensor, input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> None:
    root = CURSOR.root
    if root is None or compiled.in_subgraph() or not root.flags.in_forward or not torch.is_grad_enabled():
        return
    compiled.unchecked(_set_loss_in_graph, root)
    loss.cross_entropy_traced(root.context.run, out, input, target, *args, **kwargs)
    if root.flags.sampled:
        compiled.tap_logits(root, input, target, *loss.options(*args, **kwargs))


cross_entropy = observed(_cross_entropy, _saw_cross_entropy, _traced_cross_entropy, listening)


CLIPPED_IN_GRAPH = "`clip_grad_norm_` is part of a compiled graph, where its norm and its limit are not seen"


def _note_clip_in_graph() -> bool:
    """Called while a compiler traces a call of `clip_grad_norm_`; the graph gets the result."""
    for context in tuple(LISTENERS):
        context.isolation.run("coverage", "always", context.unmeasured, "note", "clip_grad_norm_", CLIPPED_IN_GRAPH)
    return True


vars(_note_clip_in_graph)["_dynamo_marked_constant"] = True


@functools.wraps(_clip_grad_norm_)
def clip_grad_norm_(parameters: Any, *args: Any, **kwargs: Any) -> Tensor:
    if torch.compiler.is_dynamo_compiling():
        _note_clip_in_graph()
        return _clip_grad_norm_(parameters, *args, **kwargs)
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for context in tuple(LISTENERS):
        with shielded(context.isolation, "clip"):
            context.events.clips(parameters)
    norm = _clip_grad_norm_(parameters, *args, **kwargs)
    for context in tuple(LISTENERS):
        with shielded(context.isolation, "clip"):
            context.events.clipped(parameters, norm, args, kwargs)
    return norm


@functools.wraps(_clip_grad_value_)
def clip_grad_value_(parameters: Any, clip_value: float, *args: Any, **kwargs: Any) -> None:
    if torch.compiler.is_dynamo_compiling():
        _clip_grad_value_(parameters, clip_value, *args, **kwargs)
        return
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    _clip_grad_value_(parameters, clip_value, *args, **kwargs)
    for context in tuple(LISTENERS):
        with shielded(context.isolation, "clip"):
            context.events.values_clipped(parameters, clip_value)


def fsdp_patches() -> list[MethodPatch]:
    """For the method of FSDP1 that clips the gradients of all ranks, if it is loaded."""
    owner: Any = getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", None)
    if owner is None:
        return []
    original = owner.clip_grad_norm_

    @functools.wraps(original)
    def clip(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        for context in tuple(LISTENERS):
            with shielded(context.isolation, "clip"):
                context.events.clips(list(self.parameters()))
        norm: Tensor = original(self, *args, **kwargs)
        for context in tuple(LISTENERS):
            with shielded(context.isolation, "clip"):
                context.events.clipped(list(self.parameters()), norm, args, kwargs)
        return norm

    return [MethodPatch(owner, "clip_grad_norm_", clip)]


def scaler_update(self: Any, *args: Any, **kwargs: Any) -> None:
    stepped = set(getattr(self, "_per_optimizer_states", ()))
    _scaler_update(self, *args, **kwargs)
    for context in tuple(LISTENERS):
        with shielded(context.isolation, "scaler"):
            context.isolation.run("scaler", "always", context.events.scaler_updated, self, stepped)


def create_script_module(nn_module: Any, *args: Any, **kwargs: Any) -> Any:
    """What `torch.jit.script` and `torch.jit.trace` call: TorchScript would compile our hooks."""
    with without_hooks(nn_module):
        return _create_script_module(nn_module, *args, **kwargs)


def kept_references(model: nn.Module) -> KeptReferences:
    """Replaces the functions of attention where a model keeps them as attributes."""
    return KeptReferences(model, [patch.pair for patch in _OF_ATTENTION])


_OF_ATTENTION = (
    Patch(_sdpa, scaled_dot_product_attention),
    Patch(_softmax, softmax),
    Patch(torch.softmax, torch_softmax),
    Patch(torch.special.softmax, special_softmax),
)
_PATCHES: tuple[Patch | MethodPatch, ...] = (
    *_OF_ATTENTION,
    MethodPatch(torch.jit._recursive, "create_script_module", create_script_module),
    Patch(_cross_entropy, cross_entropy),
    Patch(_clip_grad_norm_, clip_grad_norm_),
    Patch(_clip_grad_value_, clip_grad_value_),
    *LOSS_PATCHES,
    *BACKWARD_PATCHES,
    *scale_patches(),
    *LEAVING_PATCHES,
    *DRAWING_PATCHES,
    *LOADER_PATCHES,
    MethodPatch(torch.amp.GradScaler, "update", scaler_update),
)
_PAIRS = tuple(patch.pair for patch in _PATCHES if isinstance(patch, Patch))
_PICKLING = pickling_patches(_PAIRS)


class FunctionTaps:
    """Counts the watches that need the wrappers; installs them for the first, removes them after the last."""

    _of_ranks: list[MethodPatch] = []  # noqa: RUF012  (those that are installed now)

    @classmethod
    def install(cls, context: TapContext) -> None:
        """One more watch needs the wrappers."""
        LISTENERS.append(context)
        if len(LISTENERS) == 1:
            try:
                cls._of_ranks = [*stage_patches(), *fsdp_patches()]
                install_patches((*_PATCHES, *_PICKLING, *cls._of_ranks))
            except BaseException:
                cls.remove(context)
                raise

    @classmethod
    def remove(cls, context: TapContext) -> None:
        """One watch less."""
        LISTENERS.remove(context)
        if not LISTENERS:
            SOFTMAX_METHOD.set_installed(False)
            remove_patches((*_PATCHES, *_PICKLING, *cls._of_ranks))
