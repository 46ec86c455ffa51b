"""The loss and the output logits, at the place where they meet: `cross_entropy`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from stabwatch.kernels.logsumexp import row_statistics
from stabwatch.kernels.merge import Partials, merge_
from stabwatch.kernels.where import on_host
from stabwatch.signals.reductions import LOGSUMEXP, MEAN

TRACED_ROWS = 1024
"""Rows whose logsumexp is computed afresh inside a compiled graph, evenly spread."""
_DEPTH = 8


@torch.no_grad()
def cross_entropy(watch: Any, out: Tensor, logits: Tensor, target: Tensor, args: tuple[Any, ...], kw: Any) -> None:
    """Fold one eager `cross_entropy` call: its loss, and the logsumexp of its logits from the saved log-softmax."""
    watch.loss_seen = True
    merge_(MEAN, watch.cells.loss, mean_partials(out, _samples(logits, target, *args, **kw)))
    lse = saved_row_logsumexp(out, logits, target)
    if lse is None:
        lse = torch.logsumexp(_sampled_rows(logits).float(), dim=-1)
    merge_(LOGSUMEXP, watch.cells.logits, row_statistics(lse))


@torch.no_grad()
def cross_entropy_traced(cells: Any, out: Tensor, logits: Tensor, target: Tensor, *args: Any, **kw: Any) -> None:
    """The same inside a compiled graph, which has no saved tensors to look at: some rows afresh."""
    merge_(MEAN, cells.loss, mean_partials(out.detach(), _samples(logits, target, *args, **kw)))
    lse = torch.logsumexp(_sampled_rows(logits.detach()).float(), dim=-1)
    merge_(LOGSUMEXP, cells.logits, row_statistics(lse))


def mean_partials(loss: Tensor, samples: Tensor | float) -> Partials:
    """Count, sum, non-finite count of a loss that is the mean over `samples` (or unreduced).

    A NaN goes into the sum: a mean without its broken part would be a lie, and the count beside it tells.
    """
    loss = loss.detach().float()
    if on_host(loss) and not loss.dim():
        value, count = loss.item(), float(samples)
        return count, value * count, float(not math.isfinite(value))
    if loss.dim():
        samples = float(loss.numel())
        total = loss.sum()
    else:
        total = loss * samples
    bad = (~torch.isfinite(loss)).sum(dtype=torch.float32)
    n = torch.as_tensor(samples, dtype=torch.float32, device=loss.device)
    return torch.stack((n, total, bad))


def _samples(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor | float:
    """How many samples a scalar loss is the mean of."""
    if reduction != "mean" or target.is_floating_point():
        return 1.0
    return (target != ignore_index).sum(dtype=torch.float32)


def saved_row_logsumexp(loss: Tensor, logits: Tensor, target: Tensor) -> Tensor | None:
    """logsumexp of each row, free: the backward keeps log-probabilities p, and z_j - p_j is the same for all j."""
    logp = _saved_log_probabilities(loss)
    classes = 0 if logits.dim() == 1 else 1
    if logp is None or logp.shape != logits.shape or target.is_floating_point() or target.dim() != logits.dim() - 1:
        return None
    column = target.clamp(0, logits.shape[classes] - 1).unsqueeze(classes)
    return logits.detach().gather(classes, column).float() - logp.gather(classes, column).float()


def _saved_log_probabilities(loss: Tensor) -> Tensor | None:
    nodes: list[Any] = [loss.grad_fn]
    for _ in range(_DEPTH):
        if not nodes:
            return None
        node = nodes.pop(0)
        if node is not None and type(node).__name__ == "LogSoftmaxBackward0":
            return node._saved_result.detach()
        nodes += [n for n, _ in node.next_functions] if node is not None else []
    return None


def _sampled_rows(logits: Tensor) -> Tensor:
    if logits.dim() > 2:
        logits = logits.movedim(1, -1).flatten(0, -2)
    elif logits.dim() == 1:
        logits = logits.unsqueeze(0)
    stride = max(1, logits.shape[0] // TRACED_ROWS)
    return logits[::stride]
