"""The loss and the output logits, at the place where they meet: `cross_entropy`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from stabwatch.kernels.classes import classes
from stabwatch.kernels.direction import row_cosines
from stabwatch.kernels.logsumexp import row_statistics
from stabwatch.kernels.merge import Partials, merge_
from stabwatch.kernels.where import on_host
from stabwatch.signals.reductions import CERTAINTY, CLASSES, LOGSUMEXP, MEAN, SCALING

TRACED_ROWS = 1024
"""Rows whose logsumexp is computed afresh inside a compiled graph, evenly spread."""
SCALING_ROWS = 256
"""Rows of which the gradient is looked at."""
_DEPTH = 8


@torch.no_grad()
def cross_entropy(watch: Any, out: Tensor, logits: Tensor, target: Tensor, args: tuple[Any, ...], kw: Any) -> None:
    """Fold one eager `cross_entropy` call: its loss, and what its saved log-softmax says of the output logits."""
    watch.loss_seen = watch.cells.classifies = True
    merge_(MEAN, watch.cells.loss, call_partials(out, logits, target, *args, **kw))
    if not logits.numel():
        return
    weight, ignored, smooth = options(*args, **kw)
    free = saved_rows(out, logits, target)
    if free is None:
        _update_rows(watch.cells, logits, target, ignored)
    else:
        _update_certainty(watch.cells, *free, ignored)
    watch.plugins.logits(logits, target)
    if watch.flags.deep:
        update_deep(watch.cells, logits.detach(), target, weight, ignored, smooth)


@torch.no_grad()
def cross_entropy_traced(cells: Any, out: Tensor, logits: Tensor, target: Tensor, *args: Any, **kw: Any) -> None:
    """The same inside a compiled graph, which has no saved tensors to look at: some rows afresh."""
    merge_(MEAN, cells.loss, call_partials(out, logits, target, *args, **kw))
    _update_rows(cells, logits.detach(), target, options(*args, **kw)[1])


def _update_rows(cells: Any, logits: Tensor, target: Tensor, ignored: int) -> None:
    rows, labels = _sampled_rows(logits, target)
    lse = torch.logsumexp(rows.float(), dim=-1)
    if labels is None:
        merge_(LOGSUMEXP, cells.logits, row_statistics(lse))
        return
    z = rows.gather(1, labels.clamp(0, rows.shape[1] - 1).unsqueeze(1)).squeeze(1).float()
    _update_certainty(cells, lse, z - lse, labels, ignored)


def _update_certainty(cells: Any, lse: Tensor, log_p: Tensor, labels: Tensor, ignored: int) -> None:
    """lse, log_p (of the label's class), labels: one of each per row. Those to be ignored have no part."""
    known = labels != ignored
    merge_(LOGSUMEXP, cells.logits, _statistics_of(lse, known))
    collapsed = (known & (log_p == 0)).sum(dtype=torch.float32)
    merge_(CERTAINTY, cells.certainty, torch.stack((known.sum(dtype=torch.float32), collapsed)))


def _statistics_of(lse: Tensor, known: Tensor) -> Partials:
    """`row_statistics` of the rows that are known: the others go in as NaN, and are taken out of the counts again."""
    found = row_statistics(torch.where(known, lse, torch.nan))
    gone = (~known).sum(dtype=torch.float32)
    if isinstance(found, tuple):
        count, total, squares, bad, top = found
        return count - gone.item(), total, squares, bad - gone.item(), top
    none = torch.zeros_like(gone)
    return found - torch.stack((gone, none, none, gone, none))


def options(
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> tuple[Tensor | None, int, float]:
    """Of a call of `cross_entropy`, those that change the direction of a row's gradient."""
    return weight, ignore_index, label_smoothing


@torch.no_grad()
def update_deep(cells: Any, logits: Tensor, target: Tensor, weight: Tensor | None, ignored: int, smooth: float) -> None:
    """What is asked about the output logits on deep steps."""
    rows, _ = _sampled_rows(logits, target)
    merge_(CLASSES, cells.classes, classes(rows))
    merge_(SCALING, cells.scaling, scaling(logits, target, weight, ignored, smooth))


def scaling(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, ignored: int = -100, smooth: float = 0.0
) -> Tensor:
    """float32 (2,): rows, and the sum of their cosines between the descent direction and the logits themselves.

    Of some rows. The gradient is that of the loss as it was called: sum(t) p - t, for t the weighted target. Over the
    classes it adds up to zero, and that gives the component in which 1 - p is lost to rounding once a class is certain.
    The logits are taken less their mean over the classes, which the softmax does not see.
    """
    stride = max(1, logits.numel() // logits.shape[0 if logits.dim() == 1 else 1] // SCALING_ROWS)
    rows = _rows_of(logits)[::stride].float()
    wanted = _distribution(target, rows, stride, ignored)
    wanted = (1 - smooth) * wanted + smooth / rows.shape[-1] * wanted.sum(dim=-1, keepdim=True)
    wanted = wanted if weight is None else wanted * weight.float()
    gradient = wanted.sum(dim=-1, keepdim=True) * rows.softmax(dim=-1) - wanted
    top = rows.argmax(dim=-1, keepdim=True)
    gradient.scatter_(-1, top, 0.0)
    gradient.scatter_(-1, top, -gradient.sum(dim=-1, keepdim=True))
    return row_cosines(-gradient, rows - rows.mean(dim=-1, keepdim=True))


def _distribution(target: Tensor, rows: Tensor, stride: int, ignored: int) -> Tensor:
    """Target probabilities, like `rows`; zeros for a row that is to be ignored."""
    if target.is_floating_point():
        return _rows_of(target)[::stride].float()
    labels = target.reshape(-1)[::stride, None]
    return torch.zeros_like(rows).scatter_(-1, labels.clamp(min=0), (labels != ignored).float())


def mean_partials(loss: Tensor, samples: Tensor | float, summed: bool = False) -> Partials:
    """Count, sum, non-finite count of a loss that is the mean over `samples`, or their sum, or has one number of each.

    A NaN goes into the sum: a mean without its broken part would be a lie, and the count beside it tells.
    """
    loss = loss.detach().float()
    if on_host(loss) and not loss.dim():
        value, count = loss.item(), float(samples)
        return count, value if summed else value * count, float(not math.isfinite(value))
    total = loss.sum() if summed or loss.dim() else loss * samples
    bad = (~torch.isfinite(loss)).sum(dtype=torch.float32)
    if not isinstance(samples, Tensor):
        samples = torch.full((), samples, dtype=torch.float32, device=loss.device)
    return torch.stack((samples.float(), total, bad))


def call_partials(
    loss: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Partials:
    """`mean_partials` of a call of `cross_entropy`, over its valid targets, whichever way it reduces them."""
    summed = reduction == "sum" or size_average is False
    return mean_partials(loss, _samples(logits, target, weight, ignore_index), summed)


def _samples(logits: Tensor, target: Tensor, weight: Tensor | None, ignored: int) -> Tensor | float:
    """What a mean of `cross_entropy` divides by: its valid targets, each with the weight of its class."""
    if target.is_floating_point():
        return float(target.numel() // max(1, target.shape[min(1, target.dim() - 1)]))
    known = target != ignored
    if weight is None:
        return known.sum(dtype=torch.float32)
    of_class = weight.detach().float()[target.clamp(0, len(weight) - 1)]
    return torch.where(known, of_class, 0.0).sum()


def saved_rows(loss: Tensor, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """logsumexp, log-probability of the label, and label of each row, free.

    The backward keeps the log-probabilities p, and z_j - p_j is the logsumexp for every class j.
    """
    logp = _saved_log_probabilities(loss)
    axis = 0 if logits.dim() == 1 else 1
    if logp is None or logp.shape != logits.shape or target.is_floating_point() or target.dim() != logits.dim() - 1:
        return None
    column = target.clamp(0, logits.shape[axis] - 1).unsqueeze(axis)
    z, p = logits.detach().gather(axis, column).float(), logp.gather(axis, column).float()
    return z - p, p, target.unsqueeze(axis)


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


def _sampled_rows(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
    """At most some thousand rows (N, classes), evenly spread, and their labels if these are class indices."""
    labels = None if target.is_floating_point() else target.reshape(-1)
    logits = _rows_of(logits)
    stride = max(1, logits.shape[0] // TRACED_ROWS)
    return logits[::stride], None if labels is None else labels[::stride]


def _rows_of(logits: Tensor) -> Tensor:
    """(N, classes) of (classes,), (N, classes) or (N, classes, ...)."""
    if logits.dim() > 2:
        return logits.movedim(1, -1).flatten(0, -2)
    return logits.unsqueeze(0) if logits.dim() == 1 else logits
