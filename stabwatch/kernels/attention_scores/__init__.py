"""`attention_scores`: statistics of the logits of an attention call, without storing the logits.

`largest_logit`: the exact largest logit of a call, and its head.
`score_statistics`: seven numbers of each head. `weight_statistics`: sinks and concentration of the attention weights.
"""

from __future__ import annotations

from torch import Tensor

from stabwatch.kernels.attention_scores import eager
from stabwatch.kernels.attention_scores.weights import weight_statistics as weight_statistics
from stabwatch.kernels.dispatch import choose
from stabwatch.kernels.merge import Aggregates, merge_
from stabwatch.signals.reductions import ATTENTION_EXACT


def largest_logit(query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None) -> Aggregates:
    """Rows, non-finite rows, the largest logit, its head.

    query (B, H, T, D), key (B, G, S, D) with G dividing H; mask bool (True is visible) or additive,
    broadcastable to (B, H, T, S). The arguments are those of `scaled_dot_product_attention`.
    """
    if choose(query).fused:
        from stabwatch.kernels.attention_scores import fused

        return fused.largest_logit(query, key, mask, is_causal, scale)
    return eager.largest_logit(query, key, mask, is_causal, scale)


def update_largest_logit(
    query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None, accumulator: Tensor
) -> None:
    """Merge the largest logit of a call into an accumulator in place: float32 (4,)."""
    if query.device == accumulator.device and choose(query).fused:
        from stabwatch.kernels.attention_scores import fused

        fused.largest_logit(query, key, mask, is_causal, scale, into=accumulator)
    else:
        merge_(ATTENTION_EXACT, accumulator, largest_logit(query, key, mask, is_causal, scale))


def score_statistics(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    window: int | None = None,
    softcap: float | None = None,
    stride: int = 1,
) -> Tensor:
    """Statistics of each head's rows of attention logits, float32 (H, 7).

    The fields: rows that see a key; of these, rows with a logit that is NaN or +inf; and over the other rows: sum of
    logsumexp, sum of its square, sum of entropies (nats), largest logit, largest weight (-inf if there is no such row).

    The arguments are those of `largest_logit`, and three more. window: number of keys that a query sees, its own
    included. softcap c: logits become c tanh(logit / c) before the mask. stride: only one row in `stride` is read, so
    maxima become lower bounds.
    """
    if choose(query).fused:
        from stabwatch.kernels.attention_scores import fused

        return fused.score_statistics(query, key, mask, is_causal, scale, window, softcap, stride)
    return eager.score_statistics(query, key, mask, is_causal, scale, window, softcap, stride)
