"""The step's buffer: all aggregates of a step, on the device until the step ends, then one copy to the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stabwatch.hooks.base.host_transfer import HostTransfer
from stabwatch.hooks.base.probe import PROBES
from stabwatch.hooks.base.run_accumulators import BASICS
from stabwatch.kernels.constants import to_device
from stabwatch.runlog import Accumulator
from stabwatch.signals.reductions import IDENTITY, REDUCTIONS

Source = Callable[[], Tensor]


class Extent(IntEnum):
    """How much a step measures: what every step does, the tier `always` too, or other tiers besides."""

    BASICS = 0
    ALWAYS = 1
    ALL = 2


def identity_of(accumulators: tuple[Accumulator, ...], device: torch.device) -> Tensor:
    """Empty accumulators of one reduction: float32 (accumulators, fields)."""
    identity = [IDENTITY[f.op] for a in accumulators for f in REDUCTIONS[a.reduction].fields]
    return to_device(identity, torch.float32, device).view(len(accumulators), -1)


@dataclass(frozen=True)
class _Piece:
    """Accumulators that one source returns, and the most that a step may leave out and still fill them."""

    accumulators: tuple[Accumulator, ...]
    source: Source
    extent: Extent
    start: int
    width: int


class StepBuffer:
    """Collects accumulators from different places (sites have their own, layers share a matrix) in one flat vector.

    A step that does not measure all tiers puts together what it may have written, and nothing else.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pieces: list[_Piece] = []
        self._width = 0
        self._identity: dict[tuple[int, torch.device], Tensor] = {}
        self._blank: NDArray[np.float32] | None = None
        self._parts: dict[Extent, tuple[list[_Piece], NDArray[np.int64]]] = {}

    def add(self, accumulators: tuple[Accumulator, ...], source: Source) -> None:
        """Register a tensor that has the fields of `accumulators` in order; `source` returns it at each step."""
        width = sum(len(REDUCTIONS[a.reduction].fields) for a in accumulators)
        extent = min((_extent(a) for a in accumulators), default=Extent.ALL)
        self._pieces.append(_Piece(accumulators, source, extent, self._width, width))
        self._width += width
        self._blank, self._parts = None, {}

    @property
    def accumulators(self) -> tuple[Accumulator, ...]:
        """All accumulators, in the order of the flat vector."""
        return tuple(accumulator for piece in self._pieces for accumulator in piece.accumulators)

    def flush(self) -> Tensor:
        """The flat vector of this step, float32 (fields,); every accumulator is empty afterwards."""
        return self._flush(self._pieces)

    def send(self, extent: Extent) -> HostTransfer:
        """The flat vector of this step on its way to the host. extent: how much was measured."""
        if extent is Extent.ALL:
            return HostTransfer(self.flush())
        if extent not in self._parts:
            mine = [piece for piece in self._pieces if piece.extent <= extent]
            at = [np.arange(piece.start, piece.start + piece.width) for piece in mine]
            self._parts[extent] = mine, np.concatenate([np.zeros(0, np.int64), *at])
        if self._blank is None:
            self._blank = identity_of_all(self.accumulators)
        pieces, positions = self._parts[extent]
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


def _extent(accumulator: Accumulator) -> Extent:
    """What no probe measures is filled by the step loop itself, with the tier `always`."""
    taps, others = BASICS
    if accumulator.tap in taps or accumulator in others:
        return Extent.BASICS
    probe = PROBES.find(accumulator.tap, accumulator.reduction)
    return Extent.ALWAYS if probe is None or probe.tier == "always" else Extent.ALL
