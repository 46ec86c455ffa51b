"""Calls of functions: attention, the loss, clipping, `backward`, the gradient scaler.

Each wrapper calls the original with its arguments unchanged, and returns the result unchanged.
The wrappers are installed while at least one watch is attached.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stabwatch.hooks import compiled
from stabwatch.hooks.backward import BACKWARD_PATCHES, LISTENERS, scale_patches
from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.forward import CURSOR, in_backward
from stabwatch.hooks.patching import MethodPatch, Patch
from stabwatch.hooks.probes import attention, loss
from stabwatch.kernels.where import is_fake, tracing

_sdpa = F.scaled_dot_product_attention
_softmax = F.softmax
_cross_entropy = F.cross_entropy
_clip_grad_norm_ = torch.nn.utils.clip_grad_norm_
_scaler_update = torch.amp.GradScaler.update


@functools.wraps(_sdpa)
def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **kwargs: Any,
) -> Tensor:
    out = _sdpa(query, key, value, attn_mask, dropout_p, is_causal, **kwargs)
    site = CURSOR.site
    if site is not None and site.flags.recording:
        options = (is_causal, kwargs.get("scale"))
        if tracing():
            if site.flags.sampled:
                call = attention.as_heads(query, key, attn_mask)
                attention.exact(site, *call, *options)
                compiled.tap_attention(site, *call, *options)
        elif not (in_backward() or is_fake(query)):
            call = (query, key, attn_mask)
            site.context.isolate(attention.BRACKET, attention.note_call, site, out, *call, is_causal)
            if site.flags.deep:
                site.context.isolation.run("attention_call", "deep", attention.measure, site, *call, *options)
    return out


@functools.wraps(_softmax)
def softmax(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    out = _softmax(input, *args, **kwargs)
    site = CURSOR.site
    if site is not None and site.attention_like and site.flags.recording and input.dim() >= 3:
        if tracing():
            if site.flags.sampled:
                attention.exact_of_scores(site, input)
        elif site.flags.deep and not (in_backward() or is_fake(input)):
            site.context.isolate(attention.EXACT, attention.exact_of_scores, site, input)
    return out


@functools.wraps(_cross_entropy)
def cross_entropy(input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    out = _cross_entropy(input, target, *args, **kwargs)
    root = CURSOR.root
    if root is not None and root.flags.recording and torch.is_grad_enabled():
        if tracing():
            loss.cross_entropy_traced(root.context.run, out, input, target, *args, **kwargs)
            if root.flags.sampled:
                compiled.tap_logits(root, input, target, *loss.options(*args, **kwargs))
        elif not (in_backward() or is_fake(input)):
            context = root.context
            context.isolation.run("loss", "always", loss.cross_entropy, context, out, input, target, args, kwargs)
    return out


@functools.wraps(_clip_grad_norm_)
def clip_grad_norm_(parameters: Any, *args: Any, **kwargs: Any) -> Tensor:
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    norm = _clip_grad_norm_(parameters, *args, **kwargs)
    for context in tuple(LISTENERS):
        context.events.clipped(parameters, norm, args, kwargs)
    return norm


def scaler_update(self: Any, *args: Any, **kwargs: Any) -> None:
    stepped = set(getattr(self, "_per_optimizer_states", ()))
    _scaler_update(self, *args, **kwargs)
    for context in tuple(LISTENERS):
        context.isolation.run("scaler", "always", context.events.scaler_updated, self, stepped)


_PATCHES: tuple[Patch | MethodPatch, ...] = (
    Patch(_sdpa, scaled_dot_product_attention),
    Patch(_softmax, softmax),
    Patch(_cross_entropy, cross_entropy),
    Patch(_clip_grad_norm_, clip_grad_norm_),
    *BACKWARD_PATCHES,
    *scale_patches(),
    MethodPatch(torch.amp.GradScaler, "update", scaler_update),
)


class FunctionTaps:
    """Counts the watches that need the wrappers; installs them for the first, removes them after the last."""

    @classmethod
    def install(cls, context: TapContext) -> None:
        """One more watch needs the wrappers."""
        LISTENERS.append(context)
        if len(LISTENERS) == 1:
            for patch in _PATCHES:
                patch.install()

    @classmethod
    def remove(cls, context: TapContext) -> None:
        """One watch less."""
        LISTENERS.remove(context)
        if not LISTENERS:
            for patch in _PATCHES:
                patch.remove()
