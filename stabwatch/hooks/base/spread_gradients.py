"""Gradients that are spread over ranks in another way than their parameters: sketches of what this rank has of them.

Under sequence parallelism each rank has a summand of the gradients of norms. What the ranks have is added up beside the
training (see stabwatch/distributed/summands.py).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stabwatch.distributed.summands import OVERHEAD, Piece, Place, Summands, buckets, deviation
from stabwatch.hooks.base.host_transfer import HostTransfer
from stabwatch.hooks.base.tensors import SPREAD, local
from stabwatch.runlog import Accumulator

_MIX = (0xFF51AFD7ED558CCD - (1 << 64), 0xC4CEB9FE1A85EC53 - (1 << 64))
"""Factors of MurmurHash3's last step, as signed numbers."""


def only_moments(name: str) -> str:
    """What a run says of such gradients. name: of the first of their parameters."""
    return (
        "of gradients that are spread over ranks in another way than their parameters (each rank has a summand, or "
        f"another part; the first is {name}), norms and moments are measured, and nothing else"
    )


def estimated(layers: Sequence[str], fewest: int) -> str:
    """What a run says of such gradients that are too many to be added up one by one. fewest: buckets of a gradient."""
    deviation_ = f"{100 * deviation(fewest):.2g} %"
    return (
        f"the gradients of {len(layers)} layers are sums over ranks (the first is {layers[0]}) and have too many "
        "numbers to be added up one by one beside the training: `layer_gradient_norm` and `gradient_rms` of these are "
        f"estimates from a sketch, with a relative standard deviation of up to about {deviation_}, and so are "
        "`group_gradient_norm` and `gradient_norm` as far as these layers are in them (independent errors: less than "
        "that). `gradient_abs_max` and `gradient_fp16_headroom` of them are not measured, and of "
        "`gradient_nonfinite_total` only whether there is any"
    )


@dataclass(frozen=True)
class Spread:
    """A gradient (a DTensor), and the accumulators that it belongs to."""

    layer: Accumulator
    group: Accumulator | None
    gradient: Any


class SpreadGradients:
    """What was read of such gradients, and what goes with the step.

    place_of: where what this rank has of a gradient belongs. None where that is not known, or where this rank exchanges
    nothing. room: numbers that go with a record.
    """

    def __init__(self) -> None:
        self.place_of: Callable[[Any], Place | None] = lambda gradient: None
        self.room: Callable[[], int] = lambda: 0
        self._coarse: dict[str, int] = {}
        """Layers with gradients that are not exact, and the fewest buckets of one of them."""
        self._random: dict[tuple[Hashable, ...], Tensor] = {}
        """Signs and orders that were made."""
        self._read: tuple[list[Piece], Tensor | None] | None = None
        self._step: list[tuple[list[Piece], Tensor | None]] = []

    @torch.no_grad()
    def read(self, found: Sequence[Spread], scale: Tensor | None) -> Mapping[str, str]:
        """Sketch them in place of those that were read before. Reasons by layer for those that cannot be added up.

        scale: what they are to be divided by.
        """
        places = [self.place_of(each.gradient) for each in found]
        lost = {each.layer.site: SPREAD for each, place in zip(found, places, strict=True) if place is None}
        kept = [
            (each, place) for each, place in zip(found, places, strict=True) if place and each.layer.site not in lost
        ]
        sent = sum(piece.size + OVERHEAD for mine, _ in self._step for piece in mine)  # by other optimizers
        sizes = buckets([place.space for _, place in kept], self.room() - sent)
        pieces = [
            Piece(each.layer, each.group, place.group, size, each.gradient.numel())
            for (each, place), size in zip(kept, sizes, strict=True)
        ]
        for piece in pieces:
            if piece.size < piece.elements:
                self._coarse[piece.layer.site] = min(piece.size, self._coarse.get(piece.layer.site, piece.size))
        sketches = self._sketches(kept, sizes)
        if sketches is not None and scale is not None:
            sketches = sketches / scale.to(sketches.device, non_blocking=True)
        self._read = (pieces, sketches) if pieces else None
        return lost

    def _sketches(self, kept: Sequence[tuple[Spread, Place]], sizes: Sequence[int]) -> Tensor | None:
        """Of what this rank sends, one after the other. Gradients of one form are sketched together."""
        device = next((local(each.gradient).device for each, place in kept if place.ranks), None)
        forms: dict[tuple[int, int, Place], list[tuple[int, str, Tensor]]] = {}
        seen: Counter[str] = Counter()
        for i, ((each, place), size) in enumerate(zip(kept, sizes, strict=True)):
            layer = each.layer.site
            seen[layer] += 1
            if place.ranks:
                mine = local(each.gradient).reshape(-1).float().to(device, non_blocking=True)
                forms.setdefault((len(mine), size, place), []).append((i, f"{layer}/{seen[layer]}", mine))
        out: dict[int, Tensor] = {}
        for (_, size, place), members in forms.items():
            x = torch.stack([mine for _, _, mine in members])
            if size < place.space:
                names = tuple(name for _, name, _ in members)
                x = x[:, self._order_of(place.shard, x)] * self._signs_of(names, place.shard, x)
            found = sketch(x, size, place.shard * place.size % size)
            out.update((i, each) for (i, _, _), each in zip(members, found, strict=True))
        return torch.cat([out[i] for i in sorted(out)]) if out else None

    def _order_of(self, shard: int, x: Tensor) -> Tensor:
        """In which order the numbers of gradients of one form go to buckets: large ones are often regularly placed."""
        key = ("order", shard, x.shape[1], x.device)
        if key not in self._random:
            self._random[key] = random_bits(f"order/{shard}", x.shape[1], x.device).argsort()
        return self._random[key]

    def _signs_of(self, names: tuple[str, ...], shard: int, x: Tensor) -> Tensor:
        key = (names, shard, x.shape[1], x.device)
        if key not in self._random:
            bits = [random_bits(f"{name}/{shard}", x.shape[1], x.device) & 1 for name in names]
            self._random[key] = (1 - 2 * torch.stack(bits)).to(torch.int8)
        return self._random[key]

    @property
    def estimates(self) -> str | None:
        """What the run says of gradients that are not exact, if there are any."""
        return estimated(list(self._coarse), min(self._coarse.values())) if self._coarse else None

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


def sketch(x: Tensor, size: int, first: int) -> Tensor:
    """float32 (n, size): the numbers of each row of (n, numbers) added up in buckets, one after the other.

    first: the bucket of the first number; the first bucket follows on the last one.
    """
    x = F.pad(x, (first, -(first + x.shape[1]) % size))
    return x.view(len(x), -1, size).sum(1)


def random_bits(name: str, number: int, device: torch.device) -> Tensor:
    """int64 (number,): the same on each device, for each name others. They are made there: nothing waits for it."""
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big", signed=True)
    x = torch.arange(number, device=device).add_(seed)
    for factor in _MIX:
        x = (x ^ ((x >> 33) & 0x7FFFFFFF)) * factor
    return x ^ ((x >> 33) & 0x7FFFFFFF)
