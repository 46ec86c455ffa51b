"""Losses that compare an output with a target number by number: their shapes, and the range of their targets."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.entry import observed, runs_for_real, unseen_by_modes
from stabwatch.hooks.base.last_function import is_linear, range_of
from stabwatch.hooks.base.loss_call import LossCall
from stabwatch.hooks.base.run_accumulators import (
    BETWEEN,
    CLASS_WEIGHT,
    COMPARED_DEVIATION,
    COMPARED_LOSS,
    COMPARED_MEAN,
    DERIVATIVE,
    FIT,
    MIXED,
    OUT_OF_RANGE,
    SPREAD,
    TARGET_RMS,
    TARGET_SIZE,
    UNNORMALISED,
    UNREACHABLE,
    WANTED,
)
from stabwatch.hooks.base.tensors import tensors_in
from stabwatch.hooks.base.views import logit_rows
from stabwatch.hooks.cursor import in_backward, last_called, listening
from stabwatch.hooks.patching import Patch
from stabwatch.hooks.probes.targets import mean_weight_ratio
from stabwatch.kernels.alike import FEATURES, FEWEST, apart, directions_apart, unexplained
from stabwatch.kernels.constants import device_constant
from stabwatch.kernels.where import is_fake

SAMPLED = 1 << 16
"""Most targets of a call whose range is looked at, evenly spread."""
ROWS = 256
"""Most rows of log-probabilities of a call that are added up, evenly spread."""
TINY = 1e-12
EQUAL = 1e-6
"""Deviation of targets that are all the same."""
NEAR = 0.05
"""How far beyond an output's range a target may be: a picture that was resized overshoots."""
OFF = 0.1
"""Distance of the logarithm of a sum of probabilities from 0: far above the rounding of bfloat16."""


def _context() -> TapContext | None:
    """The watch whose model was called last in this thread, if its losses are measured now."""
    root = last_called()
    if root is None or not root.flags.recording or not torch.is_grad_enabled():
        return None
    return root.context if not in_backward() and runs_for_real() else None


def _saw(out: Tensor, input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> None:
    """What requires a gradient is the output, whichever comes first."""
    context = _context()
    if target.requires_grad and not input.requires_grad:
        input, target = target, input
    if context is not None and not is_fake(input):
        context.isolation.run("loss", "always", _note_shapes, context, input, target)
        if context.flags.looks:
            with unseen_by_modes():
                context.isolation.run("loss", "always", note_reach, context, range_of(input), target)
                note_compared(context, out, input, target)


def note_compared(context: TapContext, out: Tensor, input: Tensor, target: Tensor) -> None:
    """An output was compared with a target, and `out` is the loss of that."""
    if context.flags.sampled:
        context.isolation.run("leak", "sampled", note_leak, context, target)
    context.isolation.run("loss", "always", _note_sizes, context, input, target)
    context.isolation.run("loss", "always", _note_spread, context, input, target)
    context.isolation.run("loss", "always", _note_level, context, input, target)
    context.isolation.run("loss", "always", _note_fit, context, out, input, target)


_mse_loss = F.mse_loss


def _saw_mse(out: Tensor, input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> None:
    _saw(out, input, target)
    context = _context()
    if context is not None and context.keeps_loss_call and not args and not is_fake(input):
        context.loss_call = LossCall.seen(_mse_loss, input, target, kwargs)


def _saw_binary(out: Tensor, input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> None:
    context = _context()
    if context is not None and context.flags.looks and not is_fake(input):
        with unseen_by_modes():
            context.isolation.run("loss", "always", _note_range, context, input, target)
            context.isolation.run("loss", "always", _note_spread, context, input, target)
            context.isolation.run("loss", "always", _note_level, context, input, target)
            positive = kwargs.get("pos_weight", args[4] if len(args) > 4 else None)
            if isinstance(positive, Tensor) and positive.dim() < 2 and positive.numel() in (1, target.shape[-1]):
                context.isolation.run("loss", "always", _note_positive, context, target, positive)
            if not any(isinstance(x, Tensor) for x in (*args, *kwargs.values())):  # weights want other outputs
                context.isolation.run("loss", "always", _note_fit, context, out, input.detach().sigmoid(), target)
            if context.flags.sampled:
                context.isolation.run("leak", "sampled", note_leak, context, target)


def _note_positive(context: TapContext, target: Tensor, weight: Tensor) -> None:
    """How much do positives weigh, as far as they are more or fewer than the others? The mean over several labels."""
    rows = target.detach().reshape(-1, weight.numel())
    count = (rows[:: -(-len(rows) // ROWS)] > 0.5).float().mean(dim=0)
    weight = weight.detach().float().reshape(-1)
    both = (torch.stack((1 - count, count), -1), torch.stack((torch.ones_like(weight), weight), -1))
    context.run.note(CLASS_WEIGHT, mean_weight_ratio(*both).mean())


def _saw_probability(out: Tensor, input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> None:
    context = _context()
    if context is not None and context.flags.looks and not is_fake(input):
        with unseen_by_modes():
            context.isolation.run("loss", "always", note_reach, context, range_of(input), target)


def note_derivative(found: Any) -> None:
    """`torch.autograd.grad` gave these, from which the loss is made: are they 0 everywhere?"""
    context = _context()
    if context is not None and context.flags.looks:
        with unseen_by_modes():
            context.isolation.run("loss", "always", _note_derivative, context, found)


@torch.no_grad()
def _note_derivative(context: TapContext, found: Any) -> None:
    zero = [(x == 0).all() for x in tensors_in(found) if x.numel() and not is_fake(x)]
    if zero:
        context.run.note(DERIVATIVE, torch.stack(zero).all().float())


def broadcast_factor(a: torch.Size, b: torch.Size) -> float:
    """With how many numbers of `b`, the targets, each of `a`, the outputs, is compared; 1 where that is meant.

    Of equal dimensions: where both are expanded, each with each is meant (quantile regression), and where `b` alone is,
    several outputs for one target. Of other dimensions: where both are not expanded.
    """
    both = torch.broadcast_shapes(a, b).numel()
    if len(a) == len(b):
        alone = both == b.numel() and a[:1] == b[:1]
        return both / max(1, a.numel()) if alone else 1.0
    return both / max(1, a.numel(), b.numel())


def _note_shapes(context: TapContext, input: Tensor, target: Tensor) -> None:
    note_broadcast(context, broadcast_factor(input.shape, target.shape))


def note_broadcast(context: TapContext, factor: float) -> None:
    """A loss compared so many times the numbers that there are."""
    context.run.update_broadcast(device_constant((1.0, factor), torch.float32, context.device))


def _note_sizes(context: TapContext, input: Tensor, target: Tensor) -> None:
    """The root mean square of the targets, and over that of what they are compared with."""
    if target.numel() and input.numel():
        sizes = [_some(x).float().square().mean().sqrt() for x in (target, input)]
        context.run.note(TARGET_RMS, sizes[0])
        context.run.note(TARGET_SIZE, sizes[0] / sizes[1].clamp(min=TINY))


def _note_spread(context: TapContext, input: Tensor, target: Tensor) -> None:
    """How far the outputs for different samples are apart, over how far their targets are; 1 for equal targets."""
    if input.shape == target.shape and input.dim() and len(input) >= FEWEST:
        outputs, targets = (apart(x) for x in (input, target))
        if target.dim() == 2 and target.shape[1] >= FEATURES:
            context.run.note(WANTED, targets)
        context.run.note(SPREAD, torch.where(targets > EQUAL, outputs / targets.clamp(min=EQUAL), 1.0))


def _note_level(context: TapContext, input: Tensor, target: Tensor) -> None:
    """The mean and the deviation of the targets of a batch, one number for each sample."""
    if input.shape == target.shape and input.dim() and FEWEST <= len(target) == target.numel():
        some = _some(target).float()
        context.run.note(COMPARED_MEAN, some.mean())
        context.run.note(COMPARED_DEVIATION, some.std(correction=0))


def _note_fit(context: TapContext, out: Tensor, output: Tensor, target: Tensor) -> None:
    """The squared error over the variance of the targets; nothing of targets that are equal, or of few.

    Of a loss without a reduction, the mean counts.
    """
    if output.shape == target.shape and output.dim() and len(output) >= FEWEST:
        context.run.note(FIT, unexplained(output, target))
        context.run.note(COMPARED_LOSS, out.detach().float().mean())


def note_reach(context: TapContext, limits: tuple[float, float] | None, target: Tensor) -> None:
    """In how many targets is the output of the last functions unable to be, by more than `NEAR`?"""
    if limits is not None and target.numel():
        some, (low, high) = _some(target), limits
        context.run.note(UNREACHABLE, ((some < low - NEAR) | (some > high + NEAR)).float().mean())


def _saw_margin(out: Tensor, *args: Any, **kwargs: Any) -> None:
    """A loss whose targets are -1 and 1: the last tensor that it is given by position, or its `target`."""
    context = _context()
    tensors = [x for x in args if isinstance(x, Tensor)]
    target = kwargs.get("target", tensors[-1] if tensors else None)
    if context is not None and context.flags.looks and isinstance(target, Tensor) and not is_fake(target):
        with unseen_by_modes():
            context.isolation.run("loss", "always", _note_sides, context, target)


def _note_sides(context: TapContext, target: Tensor) -> None:
    some = _some(target)
    if len(some):
        context.run.note(OUT_OF_RANGE, (some.abs() != 1).float().mean())


def _saw_cosine(out: Tensor, x1: Tensor, x2: Tensor, *args: Any, **kwargs: Any) -> None:
    context = _context()
    if context is not None and context.flags.looks and not is_fake(x2):
        with unseen_by_modes():
            context.isolation.run("loss", "always", _note_wanted, context, x2)


def _note_wanted(context: TapContext, x: Tensor) -> None:
    found = directions_apart(x)
    if found is not None:
        context.run.note(WANTED, found)


def _some(x: Tensor) -> Tensor:
    """At most `SAMPLED` of the numbers of a tensor, evenly spread."""
    flat = x.detach().reshape(-1)
    return flat[:: -(-len(flat) // SAMPLED) or 1]


def note_leak(context: TapContext, target: Tensor) -> None:
    """Note whether the target is one of the numbers of the model's input, and whether samples are mixed."""
    mixed = context.input.mixed(target)
    if mixed is not None:
        context.run.note(MIXED, float(mixed))
    share = context.input.leak(target)
    if share is not None:
        context.run.update_leak(share)


def _note_range(context: TapContext, input: Tensor, target: Tensor) -> None:
    """Are targets outside of 0 to 1, and are logits all inside of it?"""
    for given, which in ((target, OUT_OF_RANGE), (input, BETWEEN)):
        some = _some(given)
        if len(some):
            inside = ((some >= 0) & (some <= 1)).float().mean()
            inside = torch.zeros_like(inside) if which is BETWEEN and is_linear(given) else inside
            context.run.note(which, 1 - inside if which is OUT_OF_RANGE else inside)


def _saw_nll(out: Tensor, input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> None:
    context = _context()
    if context is not None and context.flags.looks and not is_fake(input):
        with unseen_by_modes():
            context.isolation.run("loss", "always", _note_sums, context, input)


def _note_sums(context: TapContext, input: Tensor) -> None:
    """In how many rows do the exponentials not add up to 1?"""
    rows = logit_rows(input.detach())
    if len(rows) and rows.shape[1] > 1:
        context.run.note(UNNORMALISED, (_sums(rows).abs() > OFF).float().mean())


def _sums(rows: Tensor) -> Tensor:
    """Logarithms of the sums of the exponentials of some of the rows (n, classes), (at most 2 * `ROWS`,)."""
    return torch.logsumexp(rows[:: max(1, len(rows) // ROWS)].float(), dim=-1)


def _saw_ctc(
    out: Tensor,
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    *args: Any,
    **kwargs: Any,
) -> None:
    context = _context()
    if context is not None and context.flags.looks and not is_fake(log_probs):
        with unseen_by_modes():
            context.isolation.run("loss", "always", _note_blanks, context, targets, target_lengths, blank)
            context.isolation.run("loss", "always", _note_sums, context, log_probs.reshape(-1, log_probs.shape[-1]))


def _note_blanks(context: TapContext, targets: Tensor, lengths: Any, blank: int) -> None:
    """How many of the symbols of the targets are the blank? What is beyond their lengths is padding."""
    found = targets == blank
    if targets.dim() == 2:
        lengths = torch.as_tensor(lengths, device=targets.device)
        there = torch.arange(targets.shape[1], device=targets.device) < lengths.reshape(-1, 1)
        share = (found & there).sum() / there.sum().clamp(min=1)
    else:
        share = found.float().mean() if targets.numel() else found.sum()
    context.run.note(OUT_OF_RANGE, share.float())


def _saw_kl(out: Tensor, input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> None:
    context = _context()
    if context is not None and context.flags.looks and not is_fake(input):
        with unseen_by_modes():
            context.isolation.run("loss", "always", _note_excess, context, input)


def _note_excess(context: TapContext, input: Tensor) -> None:
    """In how many rows do the exponentials add up to more than 1, along each dimension that may be the classes?

    Less is allowed: a divergence over some of the classes is one.
    """
    x = input.detach()
    if x.dim() and x.numel():
        ways = {x.dim() - 1, min(1, x.dim() - 1)}
        over = [(_sums(x.movedim(d, -1).reshape(-1, x.shape[d])) > OFF).float().mean() for d in ways if x.shape[d] > 1]
        if over:
            context.run.note(UNNORMALISED, torch.stack(over).min())


def _patch(original: Any, seen: Any) -> Patch:
    """A wrapper that a pickle finds by name."""
    wrapper = observed(original, seen, None, listening)
    wrapper.__module__, wrapper.__qualname__ = F.__name__, original.__name__
    return Patch(original, wrapper)


LOSS_PATCHES = tuple(
    _patch(original, seen)
    for original, seen in (
        (F.mse_loss, _saw_mse), (F.l1_loss, _saw), (F.smooth_l1_loss, _saw), (F.huber_loss, _saw),
        (F.binary_cross_entropy_with_logits, _saw_binary), (F.binary_cross_entropy, _saw_probability),
        (F.nll_loss, _saw_nll),
        (F.ctc_loss, _saw_ctc), (F.kl_div, _saw_kl), (F.soft_margin_loss, _saw_margin),
        (F.hinge_embedding_loss, _saw_margin), (F.margin_ranking_loss, _saw_margin),
        (F.cosine_embedding_loss, _saw_margin), (F.cosine_similarity, _saw_cosine),
    )
)  # fmt: skip
