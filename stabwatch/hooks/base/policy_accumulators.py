"""Accumulators of what `watch.log_policy` is given: log-probabilities under several policies, and advantages."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stabwatch.hooks.base.accumulators import Buffer, source_of
from stabwatch.hooks.base.probe import PROBES, Probe
from stabwatch.hooks.base.tensors import new_accumulator
from stabwatch.kernels.merge import merge_
from stabwatch.signals.reductions import ADVANTAGE, LOG_RATIO, MEAN

LARGEST = 20.0
"""Largest logarithm of a ratio: exp(20), squared, is far from overflow."""
NO_ADVANTAGE = 1e-3
"""Of the largest absolute advantage: what is below it is the rounding of zero."""
LEAST_ADVANTAGE = 1e-6

SAMPLES = PROBES.register(Probe(name="policy", tap="policy", reduction=MEAN, tier="always", optional=True))
REFERENCE, OLD, ROLLOUT = (
    PROBES.register(Probe(name="policy", tap=f"policy_{of}", reduction=LOG_RATIO, tier="always", optional=True))
    for of in ("reference", "old", "rollout")
)
ADVANTAGES = PROBES.register(Probe(name="policy", tap="advantage", reduction=ADVANTAGE, tier="always", optional=True))


@dataclass(frozen=True)
class PolicyBatch:
    """What belongs to the log-probabilities of some samples; see `Watch.log_policy`."""

    old_logp: Tensor | None = None
    ref_logp: Tensor | None = None
    rollout_logp: Tensor | None = None
    advantage: Tensor | None = None
    mask: Tensor | None = None
    clip: float | tuple[float, float] = 0.2


class PolicyAccumulators:
    """One accumulator for each probe, on a device. What is not finite is counted and left out."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        every = (SAMPLES, REFERENCE, OLD, ROLLOUT, ADVANTAGES)
        self._accumulators = {probe: new_accumulator(probe.reduction.name, device) for probe in every}

    def register(self, buffer: Buffer) -> None:
        """Put the accumulators into the step's buffer."""
        for probe, accumulator in self._accumulators.items():
            buffer.add((probe.accumulator(),), source_of(accumulator))

    @torch.no_grad()
    def update(self, logp: Tensor, batch: PolicyBatch) -> None:
        """Add some samples. Raises ValueError if the shapes differ."""
        given = (batch.old_logp, batch.ref_logp, batch.rollout_logp, batch.mask)
        if any(x is not None and x.shape != logp.shape for x in given):
            raise ValueError("log-probabilities and the mask have one shape in `log_policy`")
        here = [None if x is None else self._here(x) for x in (logp, *given, _spread(batch.advantage, logp))]
        now, old, reference, rollout, mask, advantage = here
        assert now is not None
        counts = torch.ones_like(now, dtype=torch.bool) if mask is None else mask != 0
        bad = torch.stack(
            [
                (counts & ~torch.isfinite(x)).sum(dtype=torch.float32)
                for x in (now, old, reference, rollout, advantage)
                if x is not None
            ]
        ).sum()
        known = counts & torch.isfinite(now)
        total = torch.where(known, -now, 0.0).sum()
        merge_(MEAN, self._accumulators[SAMPLES], torch.stack((known.sum(dtype=torch.float32), total, bad)))
        low, high = batch.clip if isinstance(batch.clip, tuple) else (batch.clip, batch.clip)
        for probe, one, other in ((REFERENCE, reference, now), (OLD, now, old), (ROLLOUT, _first(old, now), rollout)):
            if one is not None and other is not None:
                merge_(LOG_RATIO, self._accumulators[probe], log_ratio(one - other, counts, (1 - low, 1 + high)))
        if advantage is not None:
            merge_(ADVANTAGE, self._accumulators[ADVANTAGES], advantages(advantage, counts))

    def _here(self, x: Tensor) -> Tensor:
        return x.detach().to(self._device, torch.float32, non_blocking=True)


def log_ratio(x: Tensor, counts: Tensor, clip: tuple[float, float]) -> Tensor:
    """float32 (9,): the fields of `LOG_RATIO`, of the finite ones of x that count. clip: range of exp(x)."""
    known = counts & torch.isfinite(x)
    x = torch.where(known, x, 0.0).clamp(-LARGEST, LARGEST)
    ratio = x.exp()
    clipped = (ratio < clip[0]) | (ratio > clip[1])
    each = (-x, ratio - 1 - x, x.abs(), ratio, ratio.square(), clipped)
    sums = (known.sum(dtype=torch.float32), *(torch.where(known, n, 0.0).sum(dtype=torch.float32) for n in each))
    return torch.stack((*sums, *(torch.where(known, n, -torch.inf).amax() for n in (x, -x))))


def advantages(x: Tensor, counts: Tensor) -> Tensor:
    """float32 (5,): the fields of `ADVANTAGE`, of the finite advantages of samples that count."""
    known = counts & torch.isfinite(x)
    x = torch.where(known, x, 0.0)
    largest = x.abs().amax()
    zero = known & (x.abs() <= (NO_ADVANTAGE * largest).clamp(min=LEAST_ADVANTAGE))
    one, none = (n.sum(dtype=torch.float32) for n in (known, zero))
    return torch.stack((one, x.sum(), x.square().sum(), none, torch.where(one > 0, largest, -torch.inf)))


def _first(x: Tensor | None, other: Tensor) -> Tensor:
    return other if x is None else x


def _spread(advantage: Tensor | None, like: Tensor) -> Tensor | None:
    """An advantage for each sample."""
    if advantage is None or advantage.shape == like.shape:
        return advantage
    return advantage.reshape(*advantage.shape, *(1,) * (like.dim() - advantage.dim())).expand_as(like)
