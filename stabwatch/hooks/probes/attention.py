"""What one attention call shows: a free bracket of its largest logit, and the exact value on request."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from stabwatch.hooks.base.sites import Site
from stabwatch.hooks.base.tensors import new_accumulator
from stabwatch.kernels.attention_bracket import brackets
from stabwatch.kernels.attention_scores import score_statistics, update_largest_logit
from stabwatch.kernels.attention_scores.eager import largest_score
from stabwatch.kernels.constants import device_constant
from stabwatch.kernels.contraction import contraction
from stabwatch.kernels.merge import merge_
from stabwatch.kernels.where import tracing
from stabwatch.runlog import Accumulator
from stabwatch.signals.reductions import ATTENTION_BRACKET, ATTENTION_EXACT

ENTROPY_ROWS = 64
"""Query rows of each head whose entropy is looked at."""
OTHER_TOKENS = "its queries and keys are not the same tokens"
NOTHING_SAVED = "this attention kernel saves no logsumexp"
NO_GRADIENT = "it needs no gradient (frozen layers, or reentrant checkpointing), so no logsumexp is saved"
OWN_SCORES = "the model computes its attention weights itself"
_SAVED = ("_saved_logsumexp", "_saved_log_sumexp")
_DEPTH = 4
"""Nodes to look through: some back ends pad the head width and slice the result."""


class Brackets:
    """The bracket cells of all sites: float32 (sites, 6).

    Calls leave their logsumexps here as they are (autograd holds them anyway until the backward); `fold`
    reduces all layers of a forward together, in a handful of operations.
    """

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self.cells = tuple(Accumulator("attention", name, "attention_bracket") for name in names)
        self.matrix = new_accumulator("attention_bracket", device).repeat(len(names), 1)
        self._pending: dict[tuple[Any, ...], list[tuple[int, Tensor]]] = {}

    def note(self, row: int, lse: Tensor, keys: int, causal: bool) -> None:
        """Keep the logsumexp (B, H, T) of one call until `fold`."""
        self._pending.setdefault((lse.shape, lse.device, keys, causal), []).append((row, lse))

    @torch.no_grad()
    def update(self) -> None:
        """Reduce what the calls left, and merge it into the cells."""
        pending, self._pending = self._pending, {}
        for (shape, device, keys, causal), calls in pending.items():
            found = brackets(torch.stack([lse for _, lse in calls]), _log_keys(shape[-1], keys, causal, device))
            for rows, part in _distinct([row for row, _ in calls], found.to(self.matrix.device)):
                index = device_constant(tuple(rows), torch.int64, self.matrix.device)
                merged = self.matrix[index]
                merge_(ATTENTION_BRACKET, merged, part)
                self.matrix[index] = merged


def _distinct(rows: list[int], found: Tensor) -> list[tuple[list[int], Tensor]]:
    """The calls in batches in which no site comes twice (a module may attend more than once)."""
    if len(set(rows)) == len(rows):
        return [(rows, found)]
    return [([row], found[i : i + 1]) for i, row in enumerate(rows)]


def note_call(site: Site, out: Tensor, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool) -> None:
    """Note a `scaled_dot_product_attention` call for its bracket, if its kernel saved the logsumexp."""
    if site.bracket is None:
        return
    lse = saved_logsumexp(out)
    if lse is None:
        why = NO_GRADIENT if out.grad_fn is None else NOTHING_SAVED
        site.watch.unmeasured("attention_bracket", site.name, why)
        return
    site.heads = query.shape[1]
    queries = query.shape[-2]
    lse = lse[..., :queries].reshape(-1, query.shape[1], queries)
    site.watch.brackets.note(site.bracket, lse, key.shape[-2], is_causal and mask is None)


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
    """All that a deep step asks of one attention call."""
    call = (*as_heads(query, key, mask), is_causal, scale)
    site.watch.isolation.run("attention_exact", "deep", exact, site, *call)
    if site.flags.is_due(site.bracket):
        observe(site, *call)


@torch.no_grad()
def exact(site: Site, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None) -> None:
    """Fold the exact largest logit of a call, as `as_heads` gives it, into the site's cell."""
    if not tracing():
        site.exact = _on(site.exact, "attention_exact", query.device)
    assert site.exact is not None
    update_largest_logit(query, key, mask, is_causal, scale, site.exact)


def observe(site: Site, *call: Any) -> None:
    """The deep signals of one attention call whose turn it is."""
    site.watch.isolation.run("attention_entropy", "deep", entropy, site, *call)
    site.watch.isolation.run("attention_contraction", "deep", contracted, site, *call)


@torch.no_grad()
def entropy(site: Site, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None) -> None:
    """Fold the entropy of the attention weights of some rows, evenly spread, on an eager deep step."""
    stride = max(1, query.shape[-2] // ENTROPY_ROWS)
    found = score_statistics(query, key, mask, is_causal, scale, stride=stride)
    rows = found[:, 0] - found[:, 1]
    sharpest, head = torch.where(rows > 0, -found[:, 4] / rows, -torch.inf).max(dim=0)
    partials = torch.stack((rows.sum(), found[:, 4].sum(), sharpest, head.float()))
    site.watch.deep.store.update("attention", site.name, "attention_entropy", partials)


@torch.no_grad()
def contracted(
    site: Site, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None
) -> None:
    """Fold how much of what tells tokens apart the call lets through."""
    if query.shape[-2] != key.shape[-2]:
        site.watch.unmeasured("attention_contraction", site.name, OTHER_TOKENS)
    elif query.shape[0] and query.shape[-2] > 1:
        groups = site.watch.token_groups_seen.of(query.transpose(1, 2))
        real = None if groups is None else groups.any(dim=0)
        found = contraction(query, key, mask, is_causal, scale, real)
        site.watch.deep.store.update("attention", site.name, "attention_contraction", found)


@torch.no_grad()
def exact_of_scores(site: Site, scores: Tensor) -> None:
    """The same for a module that computes its scores itself: (B, H, T, S), or (B*H, T, S) when the heads are known."""
    heads = scores.shape[-3] if scores.dim() > 3 else max(1, site.heads)
    if not tracing():
        site.exact = _on(site.exact, "attention_exact", scores.device)
        for what in ("attention_bracket", "attention_entropy", "attention_contraction"):
            site.watch.unmeasured(what, site.name, OWN_SCORES)
    assert site.exact is not None
    merge_(ATTENTION_EXACT, site.exact, largest_score(scores, heads))


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


@lru_cache(maxsize=64)
def _log_keys(queries: int, keys: int, causal: bool, device: torch.device) -> Tensor | float:
    if not causal:
        return math.log(keys)
    return torch.arange(1, queries + 1, device=device, dtype=torch.float32).clamp(max=keys).log()


def _on(cell: Tensor | None, reduction: str, device: torch.device) -> Tensor:
    if cell is None or cell.device != device:
        return new_accumulator(reduction, device)
    return cell
