"""What one attention call shows: a free bracket of its largest logit, and the exact value on request."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from stabwatch.hooks.sites import Site, new_cell
from stabwatch.kernels.attention_bracket import bracket
from stabwatch.kernels.attention_scores import largest_logit
from stabwatch.kernels.attention_scores.eager import largest_score
from stabwatch.kernels.merge import merge_
from stabwatch.signals.reductions import ATTENTION_BRACKET, ATTENTION_EXACT

_SAVED = ("_saved_logsumexp", "_saved_log_sumexp")
_DEPTH = 4
"""Nodes to look through: some back ends pad the head width and slice the result."""


@torch.no_grad()
def bracket_of_call(
    site: Site, out: Tensor, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None
) -> None:
    """Fold the bracket of a `scaled_dot_product_attention` call into the site's cell, if its kernel saved the LSE."""
    lse = saved_logsumexp(out)
    if lse is None:
        site.watch.unmeasured("attention_bracket", site.name, "this attention kernel saves no logsumexp")
        return
    queries, keys = query.shape[-2], key.shape[-2]
    lse = lse[..., :queries].reshape(-1, query.shape[1], queries)
    causal = is_causal and mask is None
    site.bracket = _on(site.bracket, "attention_bracket", lse.device)
    site.heads = query.shape[1]
    merge_(ATTENTION_BRACKET, site.bracket, bracket(lse, _log_keys(queries, keys, causal, lse.device)))


@torch.no_grad()
def exact(
    site: Site, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None
) -> None:
    """Fold the exact largest logit of a call into the site's cell."""
    if query.dim() == 3:
        query, key = query.unsqueeze(1), key.unsqueeze(1)
    if not torch.compiler.is_compiling():
        site.exact = _on(site.exact, "attention_exact", query.device)
    assert site.exact is not None
    merge_(ATTENTION_EXACT, site.exact, largest_logit(query, key, mask, is_causal, scale))


@torch.no_grad()
def exact_of_scores(site: Site, scores: Tensor) -> None:
    """The same for a module that computes its scores itself: (B, H, T, S), or (B*H, T, S) when the heads are known."""
    heads = scores.shape[-3] if scores.dim() > 3 else max(1, site.heads)
    if not torch.compiler.is_compiling():
        site.exact = _on(site.exact, "attention_exact", scores.device)
    assert site.exact is not None
    merge_(ATTENTION_EXACT, site.exact, largest_score(scores, heads))


def saved_logsumexp(out: Tensor) -> Tensor | None:
    """The logsumexp that a fused kernel kept for its backward: (B, H, T or more), or None."""
    node: Any = out.grad_fn
    for _ in range(_DEPTH):
        if node is None:
            return None
        for name in _SAVED:
            if hasattr(node, name):
                return getattr(node, name).detach()
        node = node.next_functions[0][0] if node.next_functions else None
    return None


@lru_cache(maxsize=64)
def _log_keys(queries: int, keys: int, causal: bool, device: torch.device) -> Tensor | float:
    if not causal:
        return math.log(keys)
    return torch.arange(1, queries + 1, device=device, dtype=torch.float32).clamp(max=keys).log()


def _on(cell: Tensor | None, reduction: str, device: torch.device) -> Tensor:
    if cell is None or cell.device != device:
        return new_cell(reduction, device)
    return cell
