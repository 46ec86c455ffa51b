"""The loss and the output logits, at the place where both are known: `cross_entropy`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.last_function import is_linear, is_scrambled, starts_late
from stabwatch.hooks.base.probe import PROBES, Probe, on
from stabwatch.hooks.base.run_accumulators import BETWEEN, CLASS_WEIGHT, SCRAMBLED, RunAccumulators, mean_aggregates
from stabwatch.hooks.base.tensors import local
from stabwatch.hooks.base.views import LogitsCall, logit_rows, sampled_rows
from stabwatch.hooks.probes.targets import between, class_weight_ratio
from stabwatch.kernels.classes import classes
from stabwatch.kernels.direction import row_cosines
from stabwatch.kernels.logsumexp import row_statistics
from stabwatch.kernels.merge import Aggregates, merge_
from stabwatch.kernels.where import on_host
from stabwatch.signals.reductions import CERTAINTY, CLASSES, LOGSUMEXP, MEAN, SCALING, TARGETS

SCALING_ROWS = 256
"""Rows whose gradient is compared with the logits."""
_DEPTH = 8
CLASSES_ELSEWHERE = (
    "its classes are split over ranks (loss parallelism), and what is made of a whole row is a collective"
)
ROWS_ELSEWHERE = "its rows are split over ranks (a DTensor), and the loss of all of them is a collective"


@torch.no_grad()
def cross_entropy(
    context: TapContext, out: Tensor, logits: Tensor, target: Tensor, args: tuple[Any, ...], kw: Any
) -> None:
    """Measure one eager `cross_entropy` call: its loss, and what its saved log-softmax says of the output logits."""
    run = context.run
    run.classifies = True
    if any(_placements(x) for x in (out, logits, target)):
        _of_dtensors(context, out, logits, target, args, kw)
        return
    merge_(MEAN, run.token_loss, call_aggregates(out, logits, target, *args, **kw))
    if not logits.numel():
        return
    weight, ignored, smoothing = options(*args, **kw)
    logp = _saved_log_probabilities(out)
    if logp is not None and _is_plain(logp, logits, target):
        _update_host(run, logp.numpy(), logits.detach().numpy(), target.numpy(), ignored)
    elif logp is not None and (free := saved_rows(logp, logits, target)) is not None:
        _update_certainty(run, *free, ignored)
    else:
        _update_rows(run, logits, target, ignored)
    if context.flags.looks:
        if logits.dim() > 2:
            run.note(SCRAMBLED, float(is_scrambled(logits)))
        run.note(BETWEEN, 0.0 if is_linear(logits) else between(logit_rows(logits.detach())))
        weighs = None if weight is None else class_weight_ratio(target, weight, ignored)
        if weighs is not None:
            run.note(CLASS_WEIGHT, weighs)
    if due := context.due(LogitsCall):
        given = None if starts_late(logits) else context.input
        context.measure(due, LogitsCall(logits.detach(), target, weight, ignored, smoothing, given))


def _placements(x: Any) -> tuple[Any, ...]:
    """Those of a DTensor; none of anything else."""
    return getattr(x, "placements", ())


def _of_dtensors(context: TapContext, out: Any, logits: Any, target: Any, args: tuple[Any, ...], kw: Any) -> None:
    """The same of DTensors: what this rank has of them, without a collective.

    Where the classes are split over ranks, each has the whole loss and all labels, and no whole row of logits.
    """
    weight, ignored, smoothing = options(*args, **kw)
    axis = 0 if logits.dim() == 1 else 1
    split = any(p.is_shard(axis) for p in _placements(logits))
    whole = all(p.is_replicate() for x in (out, target, weight) for p in _placements(x))
    if not whole or not all(p.is_replicate() or p.is_shard(axis) for p in _placements(logits)):
        context.unmeasured("logits", "", ROWS_ELSEWHERE)
    elif not split:
        args = tuple(local(x) if _placements(x) else x for x in args)
        kw = {name: local(x) if _placements(x) else x for name, x in kw.items()}
        cross_entropy(context, local(out), local(logits), local(target), args, kw)
    else:
        labels = local(target)
        if weight is None:
            merge_(MEAN, context.run.token_loss, call_aggregates(local(out), local(logits), labels, *args, **kw))
        due = [probe for probe in context.due(LogitsCall) if probe.reduction is TARGETS]  # it reads shapes and labels
        context.measure(due, LogitsCall(logits.detach(), labels, weight, ignored, smoothing, context.input))
        context.unmeasured("logits", "", CLASSES_ELSEWHERE)


@torch.no_grad()
def cross_entropy_traced(
    run: RunAccumulators, out: Tensor, logits: Tensor, target: Tensor, *args: Any, **kw: Any
) -> None:
    """The same inside a compiled graph, which has no saved tensors: some rows are computed again."""
    merge_(MEAN, run.token_loss, call_aggregates(out, logits, target, *args, **kw))
    _update_rows(run, logits.detach(), target, options(*args, **kw)[1])


def _update_rows(run: RunAccumulators, logits: Tensor, target: Tensor, ignored: int) -> None:
    rows, labels = sampled_rows(logits, target)
    lse = torch.logsumexp(rows.float(), dim=-1)
    if labels is None:
        merge_(LOGSUMEXP, run.logits, row_statistics(lse))
        return
    z = rows.gather(1, labels.clamp(0, rows.shape[1] - 1).unsqueeze(1)).squeeze(1).float()
    _update_certainty(run, lse, z - lse, labels, ignored)


def _update_certainty(run: RunAccumulators, lse: Tensor, log_p: Tensor, labels: Tensor, ignored: int) -> None:
    """lse, log_p (of the label's class), labels: one of each per row. Rows with the label `ignored` are left out."""
    known = labels != ignored
    merge_(LOGSUMEXP, run.logits, _statistics_of(lse, known))
    collapsed = (known & (log_p == 0)).sum(dtype=torch.float32)
    merge_(CERTAINTY, run.certainty, torch.stack((known.sum(dtype=torch.float32), collapsed)))


def _is_plain(logp: Tensor, logits: Tensor, target: Tensor) -> bool:
    """Rows and labels in the host's memory, in a format that numpy has."""
    if logits.dim() != 2 or logp.shape != logits.shape or target.dim() != 1 or target.is_floating_point():
        return False
    numbers = (torch.float32, torch.float64)
    return on_host(logits) and on_host(target) and logits.dtype in numbers and logp.dtype in numbers


def _update_host(
    run: RunAccumulators, logp: NDArray[Any], logits: NDArray[Any], labels: NDArray[Any], ignored: int
) -> None:
    """The same as `_update_certainty` of `saved_rows`, by numpy: small batches cost a fifth of it."""
    rows = np.flatnonzero(labels != ignored)
    found = np.clip(labels[rows], 0, logits.shape[1] - 1)
    p = logp[rows, found].astype(np.float64)
    with np.errstate(all="ignore"):
        lse = logits[rows, found] - p
    finite = np.isfinite(lse)
    kept = lse if finite.all() else lse[finite]
    top = float(kept.max()) if len(kept) else -math.inf
    statistics = (float(len(rows)), float(kept.sum()), float(kept @ kept), float(len(rows) - len(kept)), top)
    merge_(LOGSUMEXP, run.logits, statistics)
    merge_(CERTAINTY, run.certainty, (float(len(rows)), float(np.count_nonzero(p == 0))))


def _statistics_of(lse: Tensor, known: Tensor) -> Aggregates:
    """`row_statistics` of the rows that are known: the others enter as NaN, and are subtracted from the counts."""
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
    """What changes the direction of a row's gradient in `cross_entropy`: class weights, ignored label, smoothing."""
    return weight, ignore_index, label_smoothing


def scaling(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, ignored: int = -100, smooth: float = 0.0
) -> Tensor:
    """float32 (2,): rows, and the sum of their cosines between the descent direction and the logits themselves.

    It is measured on some of the rows. The gradient is that of the loss as it was called: sum(t) p - t, where t is the
    weighted target. It adds up to zero over the classes; this gives the largest class's component, in which 1 - p is
    lost to rounding once the class is certain. The mean over the classes is subtracted from the logits, because the
    softmax does not depend on it.
    """
    stride = max(1, logits.numel() // logits.shape[0 if logits.dim() == 1 else 1] // SCALING_ROWS)
    rows = logit_rows(logits)[::stride].float()
    wanted = _distribution(target, rows, stride, ignored)
    wanted = (1 - smooth) * wanted + smooth / rows.shape[-1] * wanted.sum(dim=-1, keepdim=True)
    wanted = wanted if weight is None else wanted * weight.float()
    gradient = wanted.sum(dim=-1, keepdim=True) * rows.softmax(dim=-1) - wanted
    top = rows.argmax(dim=-1, keepdim=True)
    gradient.scatter_(-1, top, 0.0)
    gradient.scatter_(-1, top, -gradient.sum(dim=-1, keepdim=True))
    return row_cosines(-gradient, rows - rows.mean(dim=-1, keepdim=True))


def _distribution(target: Tensor, rows: Tensor, stride: int, ignored: int) -> Tensor:
    """Target probabilities, like `rows`; zeros for a row that is ignored."""
    if target.is_floating_point():
        return logit_rows(target)[::stride].float()
    labels = target.reshape(-1)[::stride, None]
    return torch.zeros_like(rows).scatter_(-1, labels.clamp(min=0), (labels != ignored).float())


def call_aggregates(
    loss: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Aggregates:
    """`mean_aggregates` of a call of `cross_entropy` over its valid targets, for any way of reducing them."""
    summed = reduction == "sum" or size_average is False
    return mean_aggregates(loss, _samples(logits, target, weight, ignore_index), summed)


def _samples(logits: Tensor, target: Tensor, weight: Tensor | None, ignored: int) -> Tensor | float:
    """What the mean of `cross_entropy` divides by: its valid targets, each with the weight of its class."""
    if target.is_floating_point():
        return float(target.numel() // max(1, target.shape[min(1, target.dim() - 1)]))
    if weight is None and on_host(target):
        return float(np.count_nonzero(target.detach().numpy() != ignored))
    known = target != ignored
    if weight is None:
        return known.sum(dtype=torch.float32)
    of_class = weight.detach().float()[target.clamp(0, len(weight) - 1)]
    return torch.where(known, of_class, 0.0).sum()


def saved_rows(logp: Tensor, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """logsumexp, log-probability of the label, and label of each row, without a pass over the logits.

    Autograd keeps the log-probabilities p for the backward, and z_j - p_j is the logsumexp for every class j.
    """
    axis = 0 if logits.dim() == 1 else 1
    if logp.shape != logits.shape or target.is_floating_point() or target.dim() != logits.dim() - 1:
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


PROBES.register(
    Probe(
        name="classes", tap="logits", reduction=CLASSES, tier="deep",
        compute=on(LogitsCall, lambda x: classes(x.rows)),
    )
)  # fmt: skip
PROBES.register(
    Probe(
        name="scaling", tap="logits", reduction=SCALING, tier="deep",
        compute=on(LogitsCall, lambda x: scaling(x.logits, x.target, x.weight, x.ignored, x.smoothing)),
    )
)  # fmt: skip
