"""What `cross_entropy` is given: how its targets are spread, and whether its logits are logits."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stabwatch.hooks.base.probe import PROBES, Probe, on
from stabwatch.hooks.base.sampling import places, spread
from stabwatch.hooks.base.views import LogitsCall, logit_rows
from stabwatch.kernels.merge import Aggregates
from stabwatch.kernels.where import on_host
from stabwatch.signals.reductions import LOGIT_FORM, TARGETS, TEXT_END, TOKEN_ORDER

LABELS = 4096
"""Most labels of a call that are read, evenly spread."""
TINY = 1e-12
ROWS = 256
"""Most rows of logits of a call that are read, evenly spread."""
SUM = 2.0**-6
"""Largest distance of a sum of probabilities from 1: the rounding of a softmax in bfloat16."""


def targets(x: LogitsCall) -> Aggregates | None:
    """(6,): labels, how many are ignored and known, sums of the known ones and of their squares, classes.

    A label counts as its number over the number of classes. None for targets that are probabilities.
    """
    if x.target.is_floating_point() or not x.target.numel():
        return None
    classes = x.logits.shape[0 if x.logits.dim() == 1 else 1]
    if on_host(x.target):
        found = x.target.detach().numpy().reshape(-1)
        some = found if len(found) <= LABELS else found[places(len(found), LABELS, x.target.device).numpy()]
        return _of_host(some, x.ignored, classes)
    labels = spread(x.target.reshape(-1, 1), LABELS).squeeze(1)
    known = labels != x.ignored
    place = torch.where(known, labels, 0).to(torch.float32) / classes
    count = torch.full((), float(len(labels)), device=labels.device)
    seen = known.sum(dtype=torch.float32)
    return torch.stack(
        (count, count - seen, seen, place.sum(), place.square().sum(), torch.full_like(count, float(classes)))
    )


def _of_host(labels: NDArray[np.integer], ignored: int, classes: int) -> tuple[float, ...]:
    """The same in the host's memory."""
    known = labels[labels != ignored]
    place = known.astype(np.float32) / np.float32(classes)
    seen = float(len(known))
    return float(len(labels)), len(labels) - seen, seen, float(place.sum()), float(place @ place), float(classes)


def class_weight_ratio(labels: Tensor, weight: Tensor, ignored: int) -> Tensor | None:
    """float32 (): the mean weight of labels over that of the classes that they are of; 1 for weights that are equal.

    Classes that weigh nothing are left out. None of labels that are probabilities.
    """
    if labels.is_floating_point() or not labels.numel():
        return None
    some = spread(labels.reshape(-1, 1), LABELS).squeeze(1)
    weight = weight.detach().float()
    counts = torch.zeros_like(weight).index_add_(
        0, some.clamp(0, len(weight) - 1), ((some != ignored) & (some >= 0)).float()
    )
    return mean_weight_ratio(counts, weight)


def mean_weight_ratio(counts: Tensor, weight: Tensor) -> Tensor:
    """float32 (...,): of classes, (..., classes) each: how often they come and what they weigh."""
    there = (counts > 0) & (weight > 0)
    counts, weight = counts * there, weight * there
    of_labels = (counts * weight).sum(dim=-1) / counts.sum(dim=-1).clamp(min=TINY)
    return of_labels / (weight.sum(dim=-1) / there.sum(dim=-1).clamp(min=1)).clamp(min=TINY)


def between(rows: Tensor) -> Tensor:
    """float32 (): the share of rows of logits (n, classes) between 0 and 1; 0 where nearly all add up to 1.

    A row of zeros is none: no sigmoid gives it, and a model that has fallen silent does.
    """
    some = rows[:: max(1, len(rows) // ROWS)].float()
    inside = (((some >= 0) & (some <= 1)).all(dim=-1) & (some != 0).any(dim=-1)).float().mean()
    whole = ((some.sum(dim=-1) - 1).abs() < SUM).float().mean()
    return torch.where(whole > 0.9, torch.zeros_like(inside), inside)


def logit_form(x: LogitsCall) -> Tensor | None:
    """float32 (5,): rows, how many are probabilities, how many are cut off at zero, labels, sum of their gaps.

    The gap of a label is the mean logit of its row minus its own. It is about zero in a model that has learned nothing,
    however large its logits are, and large where a margin is subtracted from the label's logit. Targets that are
    probabilities (mixed or smoothed labels) have no label.
    """
    rows = logit_rows(x.logits)
    if rows.shape[-1] < 2 or not len(rows):
        return None
    stride = max(1, len(rows) // ROWS)
    some = rows[::stride].float()
    lowest, highest = some.amin(dim=-1), some.amax(dim=-1)
    whole = (lowest >= 0) & ((some.sum(dim=-1) - 1).abs() < SUM)
    cut = (lowest == 0) & (highest > 0) & ~whole
    known, gap = torch.zeros_like(whole), torch.zeros_like(lowest)
    if not x.target.is_floating_point():
        labels = x.target.reshape(-1)[::stride]
        own = some.gather(1, labels.clamp(0, some.shape[1] - 1).unsqueeze(1)).squeeze(1)
        gap = some.mean(dim=-1) - own
        known = (labels != x.ignored) & torch.isfinite(gap)
    counts = [torch.full_like(gap[0], float(len(some))), *(m.sum(dtype=torch.float32) for m in (whole, cut, known))]
    return torch.stack((*counts, torch.where(known, gap, 0.0).sum()))


PROBES.register(
    Probe(
        name="targets", tap="logits", reduction=TARGETS, tier="always", compute=on(LogitsCall, targets), optional=True
    )
)
PROBES.register(
    Probe(
        name="token_order", tap="logits", reduction=TOKEN_ORDER, tier="sampled", optional=True, graph_safe=False,
        compute=on(LogitsCall, lambda x: None if x.given is None else x.given.order(x.target, x.ignored)),
    )
)  # fmt: skip
PROBES.register(
    Probe(
        name="text_end", tap="logits", reduction=TEXT_END, tier="sampled", optional=True, graph_safe=False,
        compute=on(LogitsCall, lambda x: None if x.given is None else x.given.endings(x.target, x.ignored)),
    )
)  # fmt: skip
PROBES.register(
    Probe(
        name="logit_form", tap="logits", reduction=LOGIT_FORM, tier="sampled", compute=on(LogitsCall, logit_form),
        optional=True,
    )
)  # fmt: skip
