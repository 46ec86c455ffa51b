"""What is the same in equal replicas of a model: a checksum of each layer's parameters, and of each buffer.

Parameters that are frozen count too. Running statistics are left out: each rank has those of its own data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stabwatch.distributed.collectives import Collectives
from stabwatch.hooks.base.accumulators import Buffer, source_of
from stabwatch.hooks.base.naming import Named, named_modules
from stabwatch.hooks.base.probe import PROBES, Probe
from stabwatch.hooks.base.tensors import is_plain, local
from stabwatch.hooks.base.tree import ModuleTree
from stabwatch.kernels.checksum import checksums
from stabwatch.kernels.constants import device_constant
from stabwatch.kernels.merge import empty_accumulator
from stabwatch.signals.reductions import CHECKSUM

CHECK = PROBES.register(Probe(name="replicas", tap="checksum", reduction=CHECKSUM, tier="sampled", optional=True))
OF_BUFFER = PROBES.register(
    Probe(name="replicas", tap="buffer_checksum", reduction=CHECKSUM, tier="sampled", optional=True)
)
"""Collected by `ReplicaChecks`, and not written to the log: ranks are compared by them."""
STATISTICS = frozenset({"running_mean", "running_var", "num_batches_tracked"})
MOST_BUFFERS = 512


@dataclass(frozen=True)
class _Held:
    """A parameter or a buffer, by its place: a program may put another tensor there. row: of its layer, or its own."""

    row: int
    holder: nn.Module
    key: str
    shape: torch.Size
    buffer: bool

    @property
    def tensor(self) -> Tensor | None:
        """This rank's numbers; None where it is gone, or no numbers in one piece any more, or a buffer has grown."""
        place = self.holder._buffers if self.buffer else self.holder._parameters
        found = place.get(self.key)
        if found is None or found.is_meta or (self.buffer and found.shape != self.shape):
            return None
        x = local(found)
        x = torch.view_as_real(x) if x.is_complex() else x
        return x if is_plain(x) else None


class ReplicaChecks:
    """float32 (places, 4): the checksum of each layer and buffer, for the ranks to compare.

    compares: whether all ranks should have the same in a place: module, name there, and what is there.
    collectives: those that this rank calls. in_no_sync: whether the last forward was told not to average gradients.
    alone: it was so when the optimizer was about to step.
    """

    def __init__(self, model: nn.Module, layers: Iterable[str], device: torch.device) -> None:
        self.compares: Callable[[nn.Module, str, Tensor], bool] = lambda module, name, tensor: False
        self.collectives = Collectives()
        self.in_no_sync: Callable[[], bool] = lambda: False
        self.alone = False
        self._held: list[_Held] | None = None
        self._begun = self._taken = False
        tree, sites, names = ModuleTree(model), set(layers), dict[tuple[str, bool], int]()
        self._all: list[_Held] = []
        seen: set[int] = set()
        for item, holder in _holders(model):
            layer = next((name for name in (item.name, *tree.above(item.name)) if name in sites), "")
            for key, p in holder._parameters.items():
                if p is not None and id(p) not in seen and not hasattr(p, "ds_tensor"):
                    row = names.setdefault((layer, False), len(names))
                    self._all.append(_Held(row, holder, key, p.shape, False))
                    seen.add(id(p))
            for key, b in holder._buffers.items():
                if (
                    b is not None
                    and id(b) not in seen
                    and not (key in STATISTICS and "running_mean" in holder._buffers)
                ):
                    name = f"{item.prefix}.{key}" if item.prefix else key
                    row = names.setdefault((name, True), len(names))
                    self._all.append(_Held(row, holder, key, b.shape, True))
                    seen.add(id(b))
        self._accumulators = tuple((OF_BUFFER if buffer else CHECK).accumulator(name) for name, buffer in names)
        self._matrix = torch.stack([empty_accumulator(CHECKSUM, device)] * max(1, len(names)))

    def register(self, buffer: Buffer) -> None:
        """Put the accumulators into the step's buffer."""
        if self._accumulators:
            buffer.add(self._accumulators, source_of(self._matrix))

    def step_ends(self) -> None:
        """The next step may be measured."""
        self._begun = self._taken = False

    def asked(self) -> bool:
        """The optimizer is about to step: is it to be measured, as weights may have just been averaged over ranks?"""
        if self._begun:
            return False
        self._begun, self.alone = True, self.in_no_sync()
        return self.collectives.step_begins()

    @torch.no_grad()
    def measure(self) -> None:
        """What is there now, once in a step."""
        if self._taken:
            return
        self._taken = True
        if self._held is None:
            self._held = [h for h in self._all if (x := _at(h)) is not None and self.compares(h.holder, h.key, x)]
        pairs = [(h.row, x) for h in self._held if (x := h.tensor) is not None]
        for device in dict.fromkeys(x.device for _, x in pairs):
            mine = [(row, x) for row, x in pairs if x.device == device]
            self._add([x for _, x in mine], [row for row, _ in mine])

    def _add(self, tensors: list[Tensor], rows: list[int]) -> None:
        """Of the tensors of one device. A layer that is on several has the sum of their checksums."""
        numbers = [x if x.is_floating_point() else x.float() for x in tensors]
        wide = torch.float64 if any(x.dtype == torch.float64 for x in numbers) else torch.float32
        norms = torch.stack([n.float() for n in torch._foreach_norm(numbers, 2, wide)]).square()
        places = dict.fromkeys(rows)
        order = {row: i for i, row in enumerate(places)}
        group = [order[row] for row in rows]
        found = torch.zeros(len(places), 4, device=norms.device)
        found[:, 0] = 1.0
        found[:, 1] = checksums(tensors, group, len(places))
        found[:, 2].index_add_(0, device_constant(tuple(group), torch.int64, norms.device), norms)
        found[:, 3] = ~torch.isfinite(found[:, 2])
        matrix = self._matrix
        matrix.index_add_(
            0, device_constant(tuple(places), torch.int64, matrix.device), found.to(matrix.device, non_blocking=True)
        )


def _holders(model: nn.Module) -> Iterator[tuple[Named, nn.Module]]:
    return ((item, holder) for item in named_modules(model) for holder in (*item.wrappers, item.module))


def _at(held: _Held) -> Tensor | None:
    return (held.holder._buffers if held.buffer else held.holder._parameters).get(held.key)
