"""The step's buffer: all aggregates of a step, on the device until the step ends, then one copy to the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from operator import is_

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

_BASICS = frozenset(BASICS)
_NONE = np.zeros(0, np.float32)
Source = Callable[[], Tensor]
Floats = NDArray[np.float32]


class Extent(IntEnum):
    """How much a step measures: what every step does, the tier `always` too, or other tiers besides."""

    BASICS = 0
    ALWAYS = 1
    ALL = 2


@dataclass(frozen=True)
class _Piece:
    """Accumulators that one source returns, and the most that a step may leave out and still fill them."""

    accumulators: tuple[Accumulator, ...]
    source: Source
    extent: Extent
    start: int
    width: int

    @property
    def places(self) -> NDArray[np.int64]:
        """Of its fields in the flat vector."""
        return np.arange(self.start, self.start + self.width)


@dataclass
class _Part:
    """The pieces that steps of one extent fill.

    tensors: those that the sources returned last. empty: the identity of each of them. host: tensors and identities as
    arrays, where all are in the host's memory.
    """

    pieces: list[_Piece]
    places: NDArray[np.int64]
    tensors: list[Tensor] = field(default_factory=list)
    empty: list[Tensor] = field(default_factory=list)
    host: tuple[list[Floats], list[Floats]] | None = None

    @classmethod
    def of(cls, pieces: list[_Piece]) -> _Part:
        """These pieces, one after the other."""
        return cls(pieces, np.concatenate([np.zeros(0, np.int64), *(piece.places for piece in pieces)]))

    def look(self) -> None:
        """Ask the sources. Most return the same tensor as ever."""
        found = [piece.source() for piece in self.pieces]
        if len(found) == len(self.tensors) and all(map(is_, found, self.tensors)):
            return
        self.tensors = found
        self.empty = [_empty(piece, x) for piece, x in zip(self.pieces, found, strict=True)]
        self.host = None
        if all(x.device.type == "cpu" and type(x) is Tensor and x.is_contiguous() for x in found):
            self.host = [x.numpy().reshape(-1) for x in found], [x.numpy().reshape(-1) for x in self.empty]


class StepBuffer:
    """Collects accumulators from different places (sites have their own, layers share a matrix) in one flat vector.

    A step that does not measure all tiers puts together what it may have written, and nothing else.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pieces: list[_Piece] = []
        self._width = 0
        self._blank: Floats | None = None
        self._parts: dict[Extent, _Part] = {}

    def add(self, accumulators: tuple[Accumulator, ...], source: Source) -> None:
        """Register a tensor that has the fields of `accumulators` in order; `source` returns it at each step."""
        width = sum(len(REDUCTIONS[a.reduction].fields) for a in accumulators)
        extent = _extent(accumulators)
        self._pieces.append(_Piece(accumulators, source, extent, self._width, width))
        self._width += width
        self._blank, self._parts = None, {}

    @property
    def accumulators(self) -> tuple[Accumulator, ...]:
        """All accumulators, in the order of the flat vector."""
        return tuple(accumulator for piece in self._pieces for accumulator in piece.accumulators)

    def flush(self) -> Tensor:
        """The flat vector of this step, float32 (fields,); every accumulator is empty afterwards."""
        flat = self._flush(self._part(Extent.ALL))
        return flat if isinstance(flat, Tensor) else torch.from_numpy(flat)

    def send(self, extent: Extent) -> HostTransfer:
        """The flat vector of this step on its way to the host. extent: how much was measured."""
        if extent is Extent.ALL:
            return HostTransfer(self._flush(self._part(extent)))
        if self._blank is None:
            self._blank = identity_of_all(self.accumulators)
        part = self._part(extent)
        return HostTransfer(self._flush(part), (self._blank, part.places))

    def _part(self, extent: Extent) -> _Part:
        if extent not in self._parts:
            self._parts[extent] = _Part.of([piece for piece in self._pieces if piece.extent <= extent])
        return self._parts[extent]

    def _flush(self, part: _Part) -> Tensor | Floats:
        part.look()
        if part.host is not None:
            arrays, empty = part.host
            flat = arrays[0].copy() if len(arrays) == 1 else np.concatenate([_NONE, *arrays])
            for array, nothing in zip(arrays, empty, strict=True):
                array[:] = nothing
            return flat
        with torch.no_grad():
            out = torch.cat([self._here(x) for x in part.tensors])
            for device in {x.device for x in part.tensors}:
                mine = [(x, e) for x, e in zip(part.tensors, part.empty, strict=True) if x.device == device]
                torch._foreach_copy_([x for x, _ in mine], [e for _, e in mine])
        return out

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
            places, theirs = _shared(piece, starts)
            if places:
                tensor = piece.source()
                index = to_device(theirs, torch.int64, flat.device)
                values = flat.index_select(0, index).to(tensor.device, non_blocking=True)
                tensor.view(-1).index_copy_(0, to_device(places, torch.int64, tensor.device), values)

    def _here(self, x: Tensor) -> Tensor:
        x = x.reshape(-1)
        return x if x.device == self.device else x.to(self.device, non_blocking=True)


def _shared(piece: _Piece, starts: dict[Accumulator, int]) -> tuple[list[int], list[int]]:
    """Places in a piece of the fields that another flat vector has too, and their places there."""
    here: list[int] = []
    there: list[int] = []
    at = 0
    for accumulator in piece.accumulators:
        width = len(REDUCTIONS[accumulator.reduction].fields)
        if accumulator in starts:
            here += range(at, at + width)
            there += range(starts[accumulator], starts[accumulator] + width)
        at += width
    return here, there


def _empty(piece: _Piece, like: Tensor) -> Tensor:
    """The identity of a piece's accumulators, shaped and placed as a tensor of theirs."""
    return to_device(identity_of_all(piece.accumulators).tolist(), torch.float32, like.device).reshape(like.shape)


def identity_of_all(accumulators: tuple[Accumulator, ...]) -> Floats:
    """Empty accumulators of any reductions, one after the other: float32 (fields,)."""
    identity = [IDENTITY[f.op] for a in accumulators for f in REDUCTIONS[a.reduction].fields]
    return np.array(identity, dtype=np.float32)


def _extent(accumulators: tuple[Accumulator, ...]) -> Extent:
    """The least that a step measures which fills some of these. Those of every step are a piece of their own."""
    if accumulators and accumulators[0] in _BASICS:
        return Extent.BASICS
    kinds = {(a.tap, a.reduction): a for a in accumulators}
    return Extent.ALWAYS if "always" in map(PROBES.tier, kinds.values()) else Extent.ALL
