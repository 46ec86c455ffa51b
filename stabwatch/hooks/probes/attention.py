"""What one attention call shows: a free bracket of its largest logit, and the exact value on request."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stabwatch.hooks.base.probe import PROBES, Need, Probe, on
from stabwatch.hooks.base.sites import Site
from stabwatch.hooks.base.tensors import new_accumulator
from stabwatch.hooks.base.views import AttentionCall
from stabwatch.hooks.probes.score_origin import is_attention
from stabwatch.kernels.attention_scores import score_statistics, update_largest_logit, weight_statistics
from stabwatch.kernels.attention_scores.eager import largest_score, statistics_of_scores
from stabwatch.kernels.attention_scores.weights import spread_of_scores
from stabwatch.kernels.contraction import contraction
from stabwatch.kernels.merge import Aggregates, merge_
from stabwatch.kernels.where import tracing
from stabwatch.signals.reductions import (
    ATTENTION_BRACKET,
    ATTENTION_CONTRACTION,
    ATTENTION_ENTROPY,
    ATTENTION_EXACT,
    ATTENTION_SINK,
)

ENTROPY_ROWS = 64
"""Query rows of each head whose entropy is measured."""
OTHER_TOKENS = "its queries and keys are not the same tokens"
NOTHING_SAVED = "this attention kernel saves no logsumexp"
NO_GRADIENT = "it needs no gradient (frozen layers, or reentrant checkpointing), so no logsumexp is saved"
PACKED = "its saved logsumexp is packed (activation checkpointing or offloading): to read it would compute it again"
OTHER_SOFTMAX = (
    "it calls softmax, but not of products of two activations (queries with keys), or not over the keys: such weights "
    "may be a gate's, and no attention logits are known of them"
)
OWN_SCORES = "the model computes its attention weights itself"
IN_TRANSFORM = "its attention is called inside of a transform (`torch.func`, `vmap`), where nothing is measured"
SOFTMAX = "softmax"
"""What these two are noted for."""
_SAVED = ("_saved_logsumexp", "_saved_log_sumexp")
_packing_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda ignore_is_tracing: None)
_DEPTH = 4
"""Nodes to look through: some back ends pad the head width and slice the result."""

BRACKET = PROBES.register(
    Probe(name="attention", tap="attention", reduction=ATTENTION_BRACKET, tier="always", graph_safe=False)
)
"""Collected by `Brackets`: all layers of a forward are reduced together."""
EXACT = PROBES.register(
    Probe(name="attention_exact", tap="attention", reduction=ATTENTION_EXACT, tier="deep", per_call=True)
)
"""Collected by `exact`: it is updated in place, also by compiled graphs."""


def note_call(site: Site, out: Tensor, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool) -> None:
    """Note a `scaled_dot_product_attention` call for its bracket, if its kernel saved the logsumexp."""
    if site.bracket is None:
        return
    packed = saved_values_are_packed()
    lse = None if packed else saved_logsumexp(out)
    if lse is None:
        why = NO_GRADIENT if out.grad_fn is None else PACKED if packed else NOTHING_SAVED
        site.context.unmeasured(BRACKET.report_key, site.name, why)
        return
    site.heads = query.shape[1]
    queries = query.shape[-2]
    if lse.dim() != 3 or lse.shape[-1] != queries:
        lse = lse[..., :queries].reshape(-1, query.shape[1], queries)
    site.context.brackets.note(site.bracket, lse, key.shape[-2], is_causal and mask is None)


def as_heads(query: Tensor, key: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same call with queries (B, H, T, D): one head if there is no such axis, axes before the heads are samples."""
    if query.dim() == key.dim() == 4 and query.shape[0] == key.shape[0] and query.shape[1] >= key.shape[1]:
        return query, key, mask
    if query.dim() < 4:
        query, key = (x.reshape(-1, 1, *x.shape[-2:]) for x in (query, key))
        mask = None if mask is None else mask.reshape(-1, 1, *mask.shape[-2:])
    samples = torch.broadcast_shapes(query.shape[:-3], key.shape[:-3])
    heads = max(query.shape[-3], key.shape[-3])
    query = query.expand(*samples, heads, -1, -1).flatten(0, -4)
    key = key.expand(*samples, -1, -1, -1).flatten(0, -4)
    if mask is not None and mask.dim() > 3:
        mask = mask.expand(*samples, -1, -1, -1).flatten(0, -4)
    return query, key, mask


@torch.no_grad()
def measure(site: Site, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None) -> None:
    """Everything that a deep step measures of one attention call."""
    call = (*as_heads(query, key, mask), is_causal, scale)
    site.context.isolate(EXACT, exact, site, *call)
    probes = site.context.due(AttentionCall, site.bracket)
    if probes:
        site.context.measure(probes, AttentionCall(site, *call))


@torch.no_grad()
def exact(site: Site, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None) -> None:
    """Update the site's exact largest logit with a call as `as_heads` returns it."""
    if not tracing():
        _follow(site, query.device)
    assert site.exact is not None
    update_largest_logit(query, key, mask, is_causal, scale, site.exact)


def softmax_of(site: Site, scores: Tensor, dim: int | None) -> None:
    """A softmax was called below a site: if these are the scores of attention, update its exact largest logit."""
    rows = over_keys(site, scores, dim)
    if rows is not None and is_attention(site, scores):
        exact_of_scores(site, rows)
    elif site.attention_like:
        site.context.unmeasured(SOFTMAX, site.name, OTHER_SOFTMAX)


def weights_of(site: Site, weights: Tensor, scores: Tensor, dim: int | None) -> None:
    """The same softmax gave these: if they are the weights of attention over tokens, note whether later ones count."""
    given = site.context.input
    if over_keys(site, scores, dim) is scores and given.may_be_weights(weights) and is_attention(site, scores):
        given.weights(weights)


def over_keys(site: Site, scores: Tensor, dim: int | None) -> Tensor | None:
    """The input of a softmax over its last dimension; None for any other.

    A module that looks like attention may have its keys in the dimension before: that one is put last then.
    """
    if dim is None or scores.dim() < 2:
        return None
    axis = dim % scores.dim()
    if axis == scores.dim() - 1:
        return scores
    return scores.mT if axis == scores.dim() - 2 and site.attention_like else None


@torch.no_grad()
def exact_of_scores(site: Site, scores: Tensor) -> None:
    """The same for a module that computes its scores itself: (B, H, T, S), (T, S), or (B*H, T, S) with known heads."""
    scores = scores if scores.dim() > 2 else scores.unsqueeze(0)
    heads = scores.shape[-3] if scores.dim() > 3 else max(1, site.heads)
    if not tracing():
        _follow(site, scores.device)
        _spread_of(site, scores.reshape(-1, heads, *scores.shape[-2:]))
    assert site.exact is not None
    merge_(ATTENTION_EXACT, site.exact, largest_score(scores, heads))


def _spread_of(site: Site, scores: Tensor) -> None:
    """What is measured of the scores besides, (B, H, T, S)."""
    for probe in (BRACKET, CONTRACTION):
        site.context.unmeasured(probe.report_key, site.name, OWN_SCORES)
    probes = tuple(probe for probe in site.context.due(AttentionCall, site.bracket) if probe is not CONTRACTION)
    if probes and scores.shape[-2] > 1:
        site.context.measure(probes, AttentionCall(site, scores, scores, None, False, None, scores))


def saved_values_are_packed() -> bool:
    """True where autograd hands what it saves to hooks: to read such a value calls the hook that unpacks it."""
    return _packing_hooks(False) is not None


def saved_logsumexp(out: Tensor) -> Tensor | None:
    """The logsumexp that a fused kernel kept for its backward: (B, H, T or more), or None."""
    node: Any = out.grad_fn
    for _ in range(_DEPTH):
        if node is None:
            return None
        for name in _SAVED:
            saved = getattr(node, name, None)
            if saved is not None:
                return saved.detach()
        node = node.next_functions[0][0] if node.next_functions else None
    return None


def _follow(site: Site, device: torch.device) -> None:
    """Have the accumulator of its largest logit on this device."""
    if site.exact is None:
        site.exact = new_accumulator(ATTENTION_EXACT.name, device)
    elif site.exact.device != device:
        site.exact = site.context.strays.on(device, ATTENTION_EXACT, site.exact)


def _entropy(x: AttentionCall) -> Aggregates:
    """Of the attention weights of some query rows, evenly spread."""
    stride = max(1, x.query.shape[-2] // ENTROPY_ROWS)
    if x.scores is not None:
        found = statistics_of_scores(x.scores, stride)
    else:
        found = score_statistics(x.query, x.key, x.mask, x.is_causal, x.scale, stride=stride)
    rows = found[:, 0] - found[:, 1]
    sharpest, head = torch.where(rows > 0, -found[:, 4] / rows, -torch.inf).max(dim=0)
    return torch.stack((rows.sum(), found[:, 4].sum(), sharpest, head.float()))


def _sink(x: AttentionCall) -> Aggregates:
    """How the weights of some query rows are spread over the keys."""
    if x.scores is not None:
        return spread_of_scores(x.scores)
    return weight_statistics(x.query, x.key, x.mask, x.is_causal, x.scale)


def _contraction(x: AttentionCall) -> Aggregates | None:
    """How much of the difference between tokens the call keeps."""
    if not x.query.shape[0] or x.query.shape[-2] < 2:
        return None
    return contraction(x.query, x.key, x.mask, x.is_causal, x.scale, x.counted)


PROBES.register(
    Probe(
        name="attention_entropy", tap="attention", reduction=ATTENTION_ENTROPY, tier="deep",
        compute=on(AttentionCall, _entropy), round_robin=True, per_call=True, optional=True,
    )
)  # fmt: skip
PROBES.register(
    Probe(
        name="attention_sink", tap="attention", reduction=ATTENTION_SINK, tier="deep",
        compute=on(AttentionCall, _sink), round_robin=True, per_call=True, optional=True,
    )
)  # fmt: skip
CONTRACTION = PROBES.register(
    Probe(
        name="attention_contraction", tap="attention", reduction=ATTENTION_CONTRACTION, tier="deep",
        compute=on(AttentionCall, _contraction), needs=(Need("same_tokens", OTHER_TOKENS),), round_robin=True,
        per_call=True, optional=True,
    )
)  # fmt: skip
