"""Moments of gradients, weights and updates at the optimizer's step, by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from stabwatch.hooks.base.accumulators import Buffer, source_of
from stabwatch.hooks.base.copies import Copies
from stabwatch.hooks.base.probe import PROBES, Probe
from stabwatch.hooks.base.spread_gradients import Spread, SpreadGradients
from stabwatch.hooks.base.tensors import gradient_shard, in_parts, is_elsewhere, new_accumulator
from stabwatch.hooks.base.tracked import TrackedParameter, tracked_parameters
from stabwatch.kernels.constants import device_constant
from stabwatch.kernels.multi_tensor import grouped_change, grouped_moments
from stabwatch.runlog import Accumulator
from stabwatch.signals.reductions import GROUP, MOMENTS, UPDATE, UPDATE_LOST

GROUPS = 16
"""Parameter groups that have a series of their own; all others share the last one."""
LOST_SAMPLE = 1 << 16
NO_GROUP = -1
GROUP_NAMES = (*(f"group{i}" for i in range(GROUPS)), "other groups")

GRADIENT = PROBES.register(Probe(name="gradient", tap="gradient", reduction=MOMENTS, tier="sampled"))
GROUP_NORM = PROBES.register(Probe(name="gradient", tap="group", reduction=GROUP, tier="sampled"))
WEIGHT = PROBES.register(Probe(name="weight", tap="weight", reduction=MOMENTS, tier="sampled"))
CHANGE = PROBES.register(Probe(name="update", tap="update", reduction=UPDATE, tier="sampled"))
LOST = PROBES.register(Probe(name="update", tap="update", reduction=UPDATE_LOST, tier="sampled", optional=True))
"""Collected by `ParameterTaps`: all layers are reduced together, in a few launches."""
TAKEN = "gradients taken"
NOT_KEPT = "`torch.autograd.grad` returned its gradient, which was not kept in `.grad`, where gradients are measured"
"""Why there is no gradient of a layer; noted under the name above."""


@dataclass(frozen=True)
class Owned:
    """A parameter and the row of its layer in the matrices."""

    tracked: TrackedParameter
    row: int

    @property
    def weight(self) -> Tensor:
        """This rank's shard; of complex numbers their real and imaginary parts."""
        return in_parts(self.tracked.of(self.tracked.parameter))

    @property
    def gradient(self) -> Tensor:
        """This rank's shard of it, where there is one."""
        found = gradient_shard(self.tracked.parameter)
        assert found is not None
        return in_parts(self.tracked.of(found))


class ParameterTaps:
    """One row per layer: a layer is the nearest watched module that owns the parameter.

    gradient, weight: float32 (layers, 4), moments. update: float32 (layers, 3). group: float32 (groups, 2), a row per
    parameter group of the optimizers, in the order in which they are first seen.
    Updates need copies of the parameters from before the step, at most `update_bytes` at a time. Where the copies of
    all layers do not fit together, layers are measured in turn. `too_large` names the layers that do not fit alone;
    their updates are not measured.
    counts: whether this rank counts a parameter. Another rank may hold the same one and count it. spread: gradients of
    which each rank has a summand. unsummed: layers whose gradient is not measured, as these are not added up, and why.
    before: those whose place they take, when the model has changed. keep: its parameters stay, even if they are frozen
    now: they may be unfrozen again at the next step.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Iterable[str],
        device: torch.device,
        update_bytes: int,
        before: ParameterTaps | None = None,
        keep: bool = False,
    ) -> None:
        self.counts: Callable[[nn.Parameter], bool] = lambda parameter: True
        self._model, self._sites, self._update_bytes = model, set(sites), update_bytes
        self._kept = frozenset(before.ids) if before is not None and keep else frozenset()
        self._seen: WeakSet[Any] = WeakSet()
        tracked = tracked_parameters(model, self._sites, self._kept)
        self.layers = tuple(dict.fromkeys(t.layer for t in tracked))
        rows = self._rows = {name: i for i, name in enumerate(self.layers)}
        self.spread: SpreadGradients = SpreadGradients() if before is None else before.spread
        self.unsummed: dict[str, str] = {}
        self._take(tracked)
        self.gradient = _empty("moments", len(rows), device)
        self.weight = _empty("moments", len(rows), device)
        self.update = _empty("update", len(rows), device)
        self.lost = _empty("update_lost", len(rows), device)
        self._phase = 0
        self.group = _empty("group", GROUPS + 1, device)
        self._numbers: WeakKeyDictionary[Any, dict[int, int]] = WeakKeyDictionary()
        self._next_number = count()
        if before is not None:
            self._numbers, self._next_number = before._numbers, before._next_number
        self._copies = Copies()
        self._before: list[tuple[Owned, Tensor]] = []
        self._read: tuple[Tensor, list[tuple[int, int]], frozenset[int]] | None = None

    def _find(self) -> None:
        """Find the parameters of the layers, also those that took the place of others since `attach`."""
        self._take(tracked_parameters(self._model, self._sites, self._kept))

    def _take(self, tracked: list[TrackedParameter]) -> None:
        self.tracked = [t for t in tracked if t.layer in self._rows]
        self._by_id: dict[int, list[Owned]] = {}
        self._by_layer: dict[str, list[nn.Parameter]] = {}
        for t in self.tracked:
            self._by_layer.setdefault(t.layer, []).append(t.parameter)
            self._by_id.setdefault(id(t.parameter), []).append(Owned(t, self._rows[t.layer]))
        self._ids = {id(p) for p in self._model.parameters()} | set(self._by_id)
        self._phases, large = _phases(self.tracked, self._rows, self._update_bytes)
        self.too_large = tuple(self.layers[row] for row in large)

    @property
    def named(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters that are tracked, with their names."""
        return [(t.name, t.parameter) for t in self.tracked]

    @property
    def ids(self) -> Iterable[int]:
        """Ids of the parameters that are tracked."""
        return self._by_id.keys()

    def is_frozen(self, layer: str) -> bool:
        """True if no parameter of a layer is trained now."""
        return not any(p.requires_grad for p in self._by_layer.get(layer, ()))

    def is_empty(self, layer: str) -> bool:
        """True if no parameter of a layer has any element."""
        shapes = [t.shape for t in self.tracked if t.layer == layer]
        return all(shape is not None and not shape.numel() for shape in shapes) and bool(shapes)

    def awaits_phase(self, layer: str) -> bool:
        """True while the updates of a layer have not been due yet."""
        row = self.layers.index(layer)
        return any(row in phase for phase in self._phases[self._phase :])

    def tracks(self, optimizer: Any) -> bool:
        """True if the optimizer holds a parameter of this model, be it frozen."""
        if optimizer not in self._seen:  # parameters may have been added or replaced since `attach`
            self._seen.add(optimizer)
            held = [id(p) for group in optimizer.param_groups for p in group["params"]]
            if not self._ids.issuperset(held):
                self._find()
        for group in optimizer.param_groups:
            for p in group["params"]:
                if id(p) in self._ids:
                    return True
        return False

    def owns(self, parameters: Iterable[Tensor]) -> bool:
        """True if any of these is a parameter of this model."""
        return any(id(p) in self._ids for p in parameters)

    def read_gradients(self, optimizer: Any) -> None:
        """Keep the moments of its gradients as they are now, in place of those that were read before.

        They are added once the optimizer has stepped: a step that raises an error has used none.
        """
        self._read = None
        scale = getattr(optimizer, "grad_scale", None)  # a fused optimizer unscales inside its own kernel
        scale = scale if isinstance(scale, Tensor) else None
        found, incomplete = self._whole(self._by_group(optimizer), scale)
        pairs = list(dict.fromkeys((o.row, group) for o, group in found))
        rows = {pair: i for i, pair in enumerate(pairs)}
        out = _empty("moments", len(pairs), self.gradient.device)
        _grouped([o.gradient for o, _ in found], [rows[o.row, group] for o, group in found], out)
        if scale is not None:
            out[:, 1].div_(scale.square())
            out[:, 3].div_(scale)
        if pairs:
            self._read = out, pairs, incomplete

    def add_gradients(self) -> None:
        """Add the moments that were read last to those of the step: with these gradients it was taken."""
        read, self._read = self._read, None
        self.spread.add()
        if read is not None:
            self._add(*read)

    def _whole(
        self, found: list[tuple[Owned, int]], scale: Tensor | None
    ) -> tuple[list[tuple[Owned, int]], frozenset[int]]:
        """What this rank counts, and groups that are incomplete: of which summands are not added up.

        What it has of gradients that are spread in another way is read. scale: what gradients are to be divided by.
        """
        elsewhere = [each for each in found if is_elsewhere(each[0].tracked.parameter)]
        rows: set[int] = set()
        if elsewhere:
            lost = self.spread.read([self._spread(o, group) for o, group in elsewhere], scale)
            self.unsummed.update(lost)
            rows = {self._rows[layer] for layer in lost}
        here = [(o, group) for o, group in found if o.row not in rows and not is_elsewhere(o.tracked.parameter)]
        groups = frozenset(group for o, group in elsewhere if o.row in rows)
        return [(o, group) for o, group in here if self.counts(o.tracked.parameter)], groups

    def _spread(self, o: Owned, group: int) -> Spread:
        layer = GRADIENT.accumulator(o.tracked.layer)
        named = None if group < 0 else GROUP_NORM.accumulator(GROUP_NAMES[group])
        return Spread(layer, named, o.tracked.parameter.grad)

    def _by_group(self, optimizer: Any) -> list[tuple[Owned, int]]:
        """The parameters that will be stepped, each with the number of its group."""
        known = self._numbers.setdefault(optimizer, {})
        for i in range(len(known), len(optimizer.param_groups)):
            announced = isinstance(optimizer, torch.optim.Optimizer)  # otherwise one may follow, with these parameters
            known[i] = min(next(self._next_number) if announced else i, GROUPS)
        return [
            (o, known[i])
            for i, group in enumerate(optimizer.param_groups)
            for p in group["params"]
            if p.grad is not None
            for o in self._by_id.get(id(p), ())
        ]

    def _add(self, found: Tensor, pairs: list[tuple[int, int]], incomplete: frozenset[int]) -> None:
        """Add moments by layer and group to the moments of the layers and to the norms of the groups."""
        layers = device_constant(tuple(row for row, _ in pairs), torch.int64, found.device)
        self.gradient[:, :3].index_add_(0, layers, found[:, :3])
        self.gradient[:, 3].scatter_reduce_(0, layers, found[:, 3], reduce="amax")
        if incomplete:
            kept = [i for i, (_, group) in enumerate(pairs) if group not in incomplete]
            pairs, found = [pairs[i] for i in kept], found[kept]
        if pairs:
            groups = device_constant(tuple(group for _, group in pairs), torch.int64, found.device)
            self.group.index_add_(0, groups, found[:, :2])

    def measure_all_gradients(self) -> None:
        """The same for all parameters, when no optimizer is going to step (a skipped step)."""
        every = [o for owned in self._by_id.values() for o in owned]
        held = [o for o in every if o.tracked.parameter.grad is not None]
        mine = [o for o, _ in self._whole([(o, NO_GROUP) for o in held], None)[0]]
        self.spread.add()
        _grouped([o.gradient for o in mine], [o.row for o in mine], self.gradient)

    def measure_weights(self, optimizer: Any) -> None:
        """Moments of the parameters, before the step."""
        mine = self._stepped(optimizer)
        _grouped([o.weight for o in mine], [o.row for o in mine], self.weight)

    def snapshot(self, optimizer: Any, closure: bool = False) -> None:
        """Copy the parameters of the layers that are due, before the step; for a closure also those without one."""
        due = self._phases[self._phase % len(self._phases)] if self._phases else frozenset()
        mine = [
            o for o in self._stepped(optimizer) if o.row in due and (closure or o.tracked.parameter.grad is not None)
        ]
        found = [(o, o.weight) for o in mine]
        mine = [o for o, weight in found if weight.is_floating_point()]
        copies = self._copies.of([weight for _, weight in found if weight.is_floating_point()])
        self._before = list(zip(mine, copies, strict=True))

    def measure_updates(self) -> None:
        """Norms of what the step changed, and of the parameters before it; the copies are released."""
        copied, self._before = self._before, []
        if not copied:
            return
        self._phase += 1
        found = [(o.weight, earlier, o) for o, earlier in copied]  # read again: the step may have set `p.data`
        found = [each for each in found if _comparable(*each[:2])]
        for weight, earlier, o in found:
            gradient = o.tracked.parameter.grad
            if earlier.element_size() == 2 and gradient is not None and gradient.layout == torch.strided:
                lost = lost_updates(o.gradient, weight, earlier)
                self.lost[o.row].add_(lost.to(self.lost.device, non_blocking=True))
        if not found:
            return
        live, before, owned = zip(*found, strict=True)
        rows = [o.row for o in owned]
        grouped_change(before, live, rows, self.update)  # it writes into the copies

    @property
    def expected(self) -> tuple[Accumulator, ...]:
        """The accumulators of the layers, which every run should fill, in the order of `register`."""
        idle = {layer for layer in self.layers if self.is_frozen(layer)}
        found = (a for accumulators, _ in self._matrices() for a in accumulators if a.tap != GROUP_NORM.tap)
        return tuple(a for a in found if a.site not in idle and a.reduction != UPDATE_LOST.name)

    def register(self, buffer: Buffer) -> None:
        """Put the matrices into the step's buffer."""
        for accumulators, matrix in self._matrices():
            buffer.add(accumulators, source_of(matrix))

    def _matrices(self) -> list[tuple[tuple[Accumulator, ...], Tensor]]:
        matrices = (
            (GRADIENT, self.layers, self.gradient),
            (GROUP_NORM, GROUP_NAMES, self.group),
            (WEIGHT, self.layers, self.weight),
            (CHANGE, self.layers, self.update),
            (LOST, self.layers, self.lost),
        )
        return [(tuple(probe.accumulator(name) for name in names), matrix) for probe, names, matrix in matrices]

    def _stepped(self, optimizer: Any) -> list[Owned]:
        params = (p for group in optimizer.param_groups for p in group["params"])
        return [o for p in params if id(p) in self._by_id and self.counts(p) for o in self._by_id[id(p)]]


def _comparable(now: Tensor, earlier: Tensor) -> bool:
    return now.shape == earlier.shape and now.dtype == earlier.dtype and now.device == earlier.device


@torch.no_grad()
def lost_updates(gradient: Tensor, after: Tensor, before: Tensor) -> Tensor:
    """float32 (2,): weights whose gradient is not zero, and how many of them the step has left the same.

    Of at most 65,536 weights, evenly spaced.
    """
    stride = max(1, -(-before.numel() // LOST_SAMPLE))
    gradient, after, before = (x.detach().reshape(-1)[::stride] for x in (gradient, after, before))
    moving = gradient != 0
    same = moving & (after == before)
    return torch.stack((moving.sum(dtype=torch.float32), same.sum(dtype=torch.float32)))


def _grouped(tensors: list[Tensor], rows: list[int], out: Tensor) -> None:
    """Add moments to the rows of `out`, device by device; of a sparse gradient those of its stored values."""
    tensors = [t.coalesce().values() if t.is_sparse else t for t in tensors]
    filled = [(t, row) for t, row in zip(tensors, rows, strict=True) if t.numel() and t.is_floating_point()]
    for device in dict.fromkeys(t.device for t, _ in filled):
        mine = [(t, row) for t, row in filled if t.device == device]
        target = out if device == out.device else _empty("moments", len(out), device)
        grouped_moments([t for t, _ in mine], [row for _, row in mine], target)
        if target is not out:
            moved = target.to(out.device, non_blocking=True)
            out[:, :3].add_(moved[:, :3])
            out[:, 3] = torch.maximum(out[:, 3], moved[:, 3])


def _empty(reduction: str, rows: int, device: torch.device) -> Tensor:
    return new_accumulator(reduction, device).repeat(rows, 1)


def _phases(
    tracked: list[TrackedParameter], rows: dict[str, int], limit: int
) -> tuple[list[frozenset[int]], list[int]]:
    """Layers packed in order into phases of at most `limit` bytes, and the layers that are larger than that."""
    size: dict[int, int] = {}
    for t in tracked:
        row = rows[t.layer]
        size[row] = size.get(row, 0) + (0 if t.shape is None else t.shape.numel() * t.parameter.element_size())
    phases: list[set[int]] = []
    room = 0
    for row, need in size.items():
        if need > limit:
            continue
        if not phases or need > room:
            phases.append(set())
            room = limit
        phases[-1].add(row)
        room -= need
    return [frozenset(phase) for phase in phases], [row for row, need in size.items() if need > limit]
