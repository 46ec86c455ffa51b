"""The guard snapshot: copies of parameters and optimizer state on the host, for a rollback to before a fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

KEPT = 3
MOST_RETURNS = 3
"""Maximum number of returns to one snapshot; after that, going back does not help."""


@dataclass
class _Snapshot:
    """step: the first step that is not included. host: copies by key. values: state that is no tensor."""

    step: int = -1
    host: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)
    values: dict[tuple[Any, ...], Any] = field(default_factory=dict)


class Snapshots:
    """Copies parameters, buffers and optimizer state to host memory every `every` steps, and keeps the last three.

    At an alert, all of them are restored from the last snapshot before the onset. Random states, the data and the
    learning-rate schedule continue. On an accelerator the copies run on their own stream, into pinned memory: the next
    step waits for them on the device, and the host never waits. They take three times their size in host memory. Each
    rank copies its own part of sharded parameters.
    """

    name = "snapshot"

    def __init__(self, model: nn.Module, every: int) -> None:
        self._model = model
        self._every = every
        self._optimizers: dict[int, Any] = {}
        self._snapshots: list[_Snapshot] = []
        self._returns: Counter[int] = Counter()
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def before(self, optimizer: Any, step: int) -> None:
        """Register the optimizer, and wait on the device for running copies."""
        self._optimizers[id(optimizer)] = optimizer
        if not self._snapshots:
            self._take(step)
        for device, stream in self._streams.items():
            torch.cuda.current_stream(device).wait_stream(stream)

    def after(self, optimizer: Any) -> None:
        """Nothing to do."""

    def boundary(self, step: int) -> None:
        """Between two steps; `step` is the next one."""
        if step % self._every == 0 and self._optimizers:
            self._take(step)

    @torch.no_grad()
    def _take(self, step: int) -> None:
        kept = _Snapshot() if len(self._snapshots) < KEPT else self._snapshots.pop(0)
        kept.values = dict(self._values())
        live = dict(self._tensors())
        kept.host = {place: kept.host[place] if place in kept.host else _host(t) for place, t in live.items()}
        for device in {t.device for t in live.values() if t.is_cuda}:
            self._streams.setdefault(device, torch.cuda.Stream(device)).wait_stream(torch.cuda.current_stream(device))
        for place, t in live.items():
            own = self._streams.get(t.device) if place[0] != "buffer" else None  # the next forward changes buffers
            with torch.cuda.stream(own):
                kept.host[place].copy_(t, non_blocking=True)
        kept.step = step
        self._snapshots.append(kept)

    def react(self, since: int) -> dict[str, Any] | None:
        """Roll back to before `since`; None if there is no such snapshot or it was used too often."""
        usable = [s for s in self._snapshots if s.step <= since]
        if not usable or self._returns[usable[-1].step] >= MOST_RETURNS:
            return None
        chosen = usable[-1]
        self._returns[chosen.step] += 1
        self._restore(chosen)
        self._snapshots = usable  # later ones contain the fault
        return {"did": "rolled back", "to_step": chosen.step}

    @torch.no_grad()
    def _restore(self, kept: _Snapshot) -> None:
        for stream in self._streams.values():
            stream.synchronize()
        had = {place[1] for place in (*kept.host, *kept.values) if place[0] == "state"}
        for optimizer in self._optimizers.values():
            for p in _parameters(optimizer):
                if p in optimizer.state and id(p) not in had:
                    del optimizer.state[p]  # it had no state then
        for place, t in dict(self._tensors()).items():
            if place in kept.host:
                t.copy_(kept.host[place])
        by_id = {id(p): (o, p) for o in self._optimizers.values() for p in _parameters(o)}
        for (_, number, name), value in kept.values.items():
            optimizer, p = by_id[number]
            optimizer.state[p][name] = value

    def _tensors(self) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
        for name, p in self._model.named_parameters():
            yield ("parameter", name), _local(p)
        for name, b in self._model.named_buffers():
            yield ("buffer", name), _local(b)
        for number, name, value in self._state():
            if isinstance(value, Tensor):
                yield ("state", number, name), _local(value)

    def _values(self) -> Iterator[tuple[tuple[Any, ...], Any]]:
        for number, name, value in self._state():
            if isinstance(value, int | float | bool | str):
                yield ("state", number, name), value

    def _state(self) -> Iterator[tuple[int, str, Any]]:
        for optimizer in self._optimizers.values():
            for p in _parameters(optimizer):
                for name, value in optimizer.state.get(p, {}).items():
                    yield id(p), name, value


def _parameters(optimizer: Any) -> Iterator[Tensor]:
    return (p for group in optimizer.param_groups for p in group["params"])


def _local(t: Tensor) -> Tensor:
    shard = getattr(t, "_local_tensor", t)
    return shard.detach() if isinstance(shard, Tensor) else t.detach()


def _host(t: Tensor) -> Tensor:
    return torch.empty(t.shape, dtype=t.dtype, pin_memory=t.is_cuda)
