"""Gradients that are spread over ranks in another way than their parameters: copies of what this rank has of them.

Under sequence parallelism each rank has a summand of the gradients of norms. What the ranks have is added up beside the
training (see stabwatch/distributed/summands.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stabwatch.distributed.summands import Group, Piece, Summands
from stabwatch.hooks.base.host_transfer import HostTransfer
from stabwatch.hooks.base.tensors import SPREAD, local
from stabwatch.runlog import Accumulator

MOST = 1 << 16
"""Numbers of which a rank sends copies with a record: 256 kB."""
TOO_MANY = (
    "its gradient is spread over ranks in another way than itself (each rank has a summand, or another part), and all "
    f"such gradients together have more than {MOST:,} numbers on one rank: so many are not added up beside the training"
)


def only_moments(name: str) -> str:
    """What a run says of such gradients. name: of the first of their parameters."""
    return (
        "of gradients that are spread over ranks in another way than their parameters (each rank has a summand, or "
        f"another part; the first is {name}), norms and moments are measured, and nothing else"
    )


@dataclass(frozen=True)
class Spread:
    """A gradient (a DTensor), and the accumulators that it belongs to."""

    layer: Accumulator
    group: Accumulator | None
    gradient: Any


class SpreadGradients:
    """What was read of such gradients, and what goes with the step.

    ranks_of: the ranks whose summands make a gradient whole with that of this rank; none where other ranks send it.
    None where that is not known, or where this rank exchanges nothing.
    """

    def __init__(self) -> None:
        self.ranks_of: Callable[[Any], Group | None] = lambda gradient: None
        self._read: tuple[list[Piece], Tensor | None] | None = None
        self._step: list[tuple[list[Piece], Tensor | None]] = []

    @torch.no_grad()
    def read(self, found: Sequence[Spread], scale: Tensor | None) -> Mapping[str, str]:
        """Copy them in place of those that were read before. Reasons by layer for those that cannot be added up.

        scale: what they are to be divided by.
        """
        ranks = [self.ranks_of(each.gradient) for each in found]
        lost = {each.layer.site: SPREAD for each, of in zip(found, ranks, strict=True) if of is None}
        kept = [(each, of or ()) for each, of in zip(found, ranks, strict=True) if each.layer.site not in lost]
        if sum(local(each.gradient).numel() for each, _ in kept) > MOST:
            lost |= dict.fromkeys((each.layer.site for each, _ in kept), TOO_MANY)
            kept = []
        sent = [local(each.gradient) if of else None for each, of in kept]
        pieces = [
            Piece(each.layer, each.group, of, 0 if mine is None else mine.numel())
            for (each, of), mine in zip(kept, sent, strict=True)
        ]
        numbers = [mine.reshape(-1).float() for mine in sent if mine is not None]
        copied = torch.cat([x.to(numbers[0].device, non_blocking=True) for x in numbers]) if numbers else None
        if copied is not None and scale is not None:
            copied = copied / scale.to(copied.device, non_blocking=True)
        self._read = (pieces, copied) if pieces else None
        return lost

    def add(self) -> None:
        """What was read last goes with the step."""
        read, self._read = self._read, None
        if read is not None:
            self._step.append(read)

    def take(self) -> Summands | None:
        """What goes with the step that ends, on its way to the host."""
        step, self._step = self._step, []
        if not step:
            return None
        pieces = [piece for mine, _ in step for piece in mine]
        copied = [numbers for _, numbers in step if numbers is not None]
        return Summands(pieces, HostTransfer(torch.cat(copied)) if copied else None)
