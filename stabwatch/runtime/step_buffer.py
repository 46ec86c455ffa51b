"""The step's buffer: all aggregates of a step, on the device until the step ends, then one copy to the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stabwatch.hooks.base.host_transfer import HostTransfer
from stabwatch.hooks.base.probe import PROBES
from stabwatch.kernels.constants import to_device
from stabwatch.runlog import Accumulator
from stabwatch.signals.reductions import IDENTITY, REDUCTIONS

Source = Callable[[], Tensor]


def identity_of(accumulators: tuple[Accumulator, ...], device: torch.device) -> Tensor:
    """Empty accumulators of one reduction: float32 (accumulators, fields)."""
    identity = [IDENTITY[f.op] for a in accumulators for f in REDUCTIONS[a.reduction].fields]
    return to_device(identity, torch.float32, device).view(len(accumulators), -1)


@dataclass(frozen=True)
class _Piece:
    """Accumulators that one source returns, at every step or only at steps that measure the other tiers."""

    accumulators: tuple[Accumulator, ...]
    source: Source
    every_step: bool
    start: int
    width: int


class StepBuffer:
    """Collects accumulators from different places (sites have their own, layers share a matrix) in one flat vector.

    A step that measures only the tier `always` puts together what that tier has written, and nothing else.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pieces: list[_Piece] = []
        self._width = 0
        self._identity: dict[tuple[int, torch.device], Tensor] = {}
        self._blank: NDArray[np.float32] | None = None
        self._always: tuple[list[_Piece], NDArray[np.int64]] | None = None

    def add(self, accumulators: tuple[Accumulator, ...], source: Source) -> None:
        """Register a tensor that has the fields of `accumulators` in order; `source` returns it at each step."""
        width = sum(len(REDUCTIONS[a.reduction].fields) for a in accumulators)
        every_step = any(_is_always(a) for a in accumulators)
        self._pieces.append(_Piece(accumulators, source, every_step, self._width, width))
        self._width += width
        self._blank = self._always = None

    @property
    def accumulators(self) -> tuple[Accumulator, ...]:
        """All accumulators, in the order of the flat vector."""
        return tuple(accumulator for piece in self._pieces for accumulator in piece.accumulators)

    def flush(self) -> Tensor:
        """The flat vector of this step, float32 (fields,); every accumulator is empty afterwards."""
        return self._flush(self._pieces)

    def send(self, whole: bool) -> HostTransfer:
        """The flat vector of this step on its way to the host. whole: more than the tier `always` was measured."""
        if whole:
            return HostTransfer(self.flush())
        if self._always is None:
            pieces = [piece for piece in self._pieces if piece.every_step]
            at = [np.arange(piece.start, piece.start + piece.width) for piece in pieces]
            self._always = pieces, np.concatenate([np.zeros(0, np.int64), *at])
        if self._blank is None:
            self._blank = identity_of_all(self.accumulators)
        pieces, positions = self._always
        return HostTransfer(self._flush(pieces), (self._blank, positions))

    def _flush(self, pieces: list[_Piece]) -> Tensor:
        with torch.no_grad():
            tensors = [piece.source() for piece in pieces]
            flat = torch.cat([self._here(t) for t in tensors])
            empty = [self._empty(piece, t) for piece, t in zip(pieces, tensors, strict=True)]
            devices = {t.device for t in tensors}
            if len(devices) == 1:
                torch._foreach_copy_(tensors, empty)
                return flat
            for device in devices:
                mine = [(t, e) for t, e in zip(tensors, empty, strict=True) if t.device == device]
                torch._foreach_copy_([t for t, _ in mine], [e for _, e in mine])
        return flat

    @torch.no_grad()
    def adopt(self, other: StepBuffer) -> None:
        """Take over what another buffer has collected in the open step, where the accumulators are the same."""
        flat = other.flush()
        starts: dict[Accumulator, int] = {}
        width = 0
        for accumulator in other.accumulators:
            starts[accumulator] = width
            width += len(REDUCTIONS[accumulator.reduction].fields)
        for piece in self._pieces:
            known = [(row, starts[a]) for row, a in enumerate(piece.accumulators) if a in starts]
            if known:
                tensor = piece.source().view(len(piece.accumulators), -1)
                fields = torch.arange(tensor.shape[1])
                rows = to_device([row for row, _ in known], torch.int64, tensor.device)
                places = torch.tensor([start for _, start in known]).unsqueeze(1) + fields
                index = to_device(places.flatten().tolist(), torch.int64, flat.device)
                values = flat.index_select(0, index).view(len(known), -1)
                tensor.index_copy_(0, rows, values.to(tensor.device, non_blocking=True))

    def _here(self, x: Tensor) -> Tensor:
        x = x.reshape(-1)
        return x if x.device == self.device else x.to(self.device, non_blocking=True)

    def _empty(self, piece: _Piece, like: Tensor) -> Tensor:
        """Kept by the place of the piece: hashing its accumulators at each step would cost more than all the rest."""
        key = (piece.start, like.device)
        if key not in self._identity:
            self._identity[key] = identity_of(piece.accumulators, like.device).reshape(like.shape)
        return self._identity[key]


def identity_of_all(accumulators: tuple[Accumulator, ...]) -> NDArray[np.float32]:
    """Empty accumulators of any reductions, one after the other: float32 (fields,)."""
    identity = [IDENTITY[f.op] for a in accumulators for f in REDUCTIONS[a.reduction].fields]
    return np.array(identity, dtype=np.float32)


def _is_always(accumulator: Accumulator) -> bool:
    """What no probe measures is filled by the step loop itself: the sources of the loss, the host's numbers."""
    probe = PROBES.find(accumulator.tap, accumulator.reduction)
    return probe is None or probe.tier == "always"
