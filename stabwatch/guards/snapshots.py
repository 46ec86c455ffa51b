"""The guard snapshot: copies of parameters and optimizer state on the host, for a rollback to before a fault."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stabwatch.guards.random_state import random_state

KEPT = 3
MOST_RETURNS = 3
"""Maximum number of returns to one snapshot; after that, going back does not help."""
Place = tuple[str, ...]
"""('parameter' or 'buffer', its name), or ('state', name of the parameter, name of the state)."""


@dataclass
class Snapshot:
    """step: the first step that is not included. host: copies by place. values: state that is no tensor.

    odd: places of state that is neither, which is not kept. random: random states, where they are kept. lent: somebody
    reads it, so its memory must not be written. copied: the events of an accelerator after which the copies are there.
    """

    step: int = -1
    host: dict[Place, Tensor] = field(default_factory=dict)
    values: dict[Place, Any] = field(default_factory=dict)
    odd: tuple[Place, ...] = ()
    random: dict[str, Any] | None = None
    lent: bool = False
    copied: list[torch.cuda.Event] = field(default_factory=list)


class LiveState:
    """The parameters, the buffers and the optimizer state of a model, by place.

    The state of a parameter is named after it, so that it is found again in another process.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.optimizers: dict[int, Any] = {}

    def tensors(self) -> Iterator[tuple[Place, Tensor]]:
        """All tensors, each rank's own part of sharded ones."""
        for name, p in self.model.named_parameters():
            yield ("parameter", name), local_part(p)
        for name, b in self.model.named_buffers():
            yield ("buffer", name), local_part(b)
        for place, value in self.state():
            if isinstance(value, Tensor):
                yield place, local_part(value)

    def state(self) -> Iterator[tuple[Place, Any]]:
        """All optimizer state."""
        for name, (optimizer, p) in self.stepped().items():
            for key, value in optimizer.state.get(p, {}).items():
                yield ("state", name, str(key)), value

    def stepped(self) -> dict[str, tuple[Any, Tensor]]:
        """Each parameter that an optimizer steps, by name, with that optimizer."""
        names = {id(p): name for name, p in self.model.named_parameters()}
        found: dict[str, tuple[Any, Tensor]] = {}
        for number, optimizer in enumerate(self.optimizers.values()):
            for index, p in enumerate(_parameters(optimizer)):
                name = names.get(id(p), "")
                found[name if name and name not in found else f"{number}/{index}"] = (optimizer, p)
        return found

    @torch.no_grad()
    def put_back(self, kept: Snapshot) -> None:
        """Write a snapshot over the live state."""
        stepped = self.stepped()
        had = {place[1] for place in (*kept.host, *kept.values) if place[0] == "state"}
        for name, (optimizer, p) in stepped.items():
            if p in optimizer.state and name not in had:
                del optimizer.state[p]  # it had no state then
        live = dict(self.tensors())
        for place, value in kept.host.items():
            if place in live:
                live[place].copy_(value)
        for (_, name, key), value in kept.values.items():
            optimizer, p = stepped[name]
            optimizer.state[p][key] = value


class Snapshots:
    """Copies parameters, buffers and optimizer state to host memory every `every` steps, and keeps the last three.

    At an alert, all of them are restored from the last snapshot before the onset. Random states, the data and the
    learning-rate schedule continue. On an accelerator the copies run on their own stream, into pinned memory: the next
    step waits for them on the device, and the host never waits. They take three times their size in host memory. Each
    rank copies its own part of sharded parameters.

    lends: snapshots are lent to another thread (`lend`), with the random states of the process. Then they take up to
    four times their size.
    """

    name = "snapshot"

    def __init__(self, model: nn.Module, every: int, lends: bool = False) -> None:
        self.live = LiveState(model)
        self._every = every
        self._lends = lends
        self._lock = threading.Lock()
        self._snapshots: list[Snapshot] = []
        self._returns: Counter[int] = Counter()
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self.unfit = (0, 0)
        """Snapshots of these steps, the last one not included, may have the fault of the last rollback."""

    def before(self, optimizer: Any, step: int) -> None:
        """Register the optimizer, and wait on the device for running copies."""
        self.live.optimizers[id(optimizer)] = optimizer
        if not self._snapshots:
            self._take(step)
        for device, stream in self._streams.items():
            torch.cuda.current_stream(device).wait_stream(stream)

    def after(self, optimizer: Any) -> None:
        """Nothing to do."""

    def boundary(self, step: int) -> None:
        """Between two steps; `step` is the next one."""
        if step % self._every == 0 and self.live.optimizers:
            self._take(step, self._lends)

    @torch.no_grad()
    def _take(self, step: int, random: bool = False) -> None:
        with self._lock:
            kept = Snapshot() if len(self._snapshots) < KEPT else self._snapshots.pop(0)
            if kept.lent:
                kept = Snapshot()
        state = list(self.live.state())
        kept.values = {place: value for place, value in state if isinstance(value, int | float | bool | str | None)}
        kept.odd = tuple(p for p, value in state if p not in kept.values and not isinstance(value, Tensor))
        kept.random = random_state() if random else None
        live = dict(self.live.tensors())
        kept.host = {place: kept.host[place] if place in kept.host else _host(t) for place, t in live.items()}
        for device in {t.device for t in live.values() if t.is_cuda}:
            self._streams.setdefault(device, torch.cuda.Stream(device)).wait_stream(torch.cuda.current_stream(device))
        for place, t in live.items():
            own = self._streams.get(t.device) if place[0] != "buffer" else None  # the next forward changes buffers
            with torch.cuda.stream(own):
                kept.host[place].copy_(t, non_blocking=True)
        kept.copied = [torch.cuda.current_stream(device).record_event() for device in self._streams]
        kept.copied += [stream.record_event() for stream in self._streams.values()]
        kept.step = step
        with self._lock:
            self._snapshots.append(kept)

    def newest(self) -> int:
        """Step of the newest snapshot that can be lent; -1 without one. From any thread."""
        with self._lock:
            return max((s.step for s in self._snapshots if s.random is not None), default=-1)

    def lend(self, step: int) -> Snapshot | None:
        """The snapshot of a step, if it is still there, until `lent` is False. From any thread."""
        with self._lock:
            for kept in self._snapshots:
                if kept.step == step and kept.random is not None:
                    kept.lent = True
                    return kept
        return None

    def react(self, since: int) -> dict[str, Any] | None:
        """Roll back to before `since`; None if there is no such snapshot or it was used too often."""
        usable = [s for s in self._snapshots if s.step <= since]
        if not usable or self._returns[usable[-1].step] >= MOST_RETURNS:
            return None
        chosen = usable[-1]
        self._returns[chosen.step] += 1
        for stream in self._streams.values():
            stream.synchronize()
        self.live.put_back(chosen)
        with self._lock:
            self.unfit = (chosen.step + 1, self._snapshots[-1].step + 1)
            self._snapshots = usable  # later ones contain the fault
        return {"did": "rolled back", "to_step": chosen.step}


def _parameters(optimizer: Any) -> Iterator[Tensor]:
    return (p for group in optimizer.param_groups for p in group["params"])


def local_part(t: Tensor) -> Tensor:
    """What this rank has of a tensor."""
    shard = getattr(t, "_local_tensor", t)
    return shard.detach() if isinstance(shard, Tensor) else t.detach()


def _host(t: Tensor) -> Tensor:
    return torch.empty(t.shape, dtype=t.dtype, pin_memory=t.is_cuda)
