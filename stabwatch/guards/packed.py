"""A snapshot as bytes, and back. Nothing is pickled: a JSON object that says what follows, and the tensors' bytes.

8 bytes    length of the text, big-endian
text       `tensors` (place, dtype, shape), `values` (place, value), `random`, padded to a multiple of 64 bytes
bytes      of the tensors, one after the other
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stabwatch.distributed.wire import PART
from stabwatch.guards.snapshots import LiveState, Place, Snapshot, local_part

HEAD, ALIGNED = 8, 64


class UnkeptError(ValueError):
    """A state that cannot be kept, and why."""


class Packed:
    """The bytes of a snapshot, without a copy of them. Raises UnkeptError."""

    def __init__(self, kept: Snapshot) -> None:
        if kept.odd:
            raise UnkeptError(f"the optimizer state {kept.odd[0][2]!r} of {kept.odd[0][1]} is no tensor and no number")
        views = []
        for place, t in kept.host.items():
            if t.layout is not torch.strided or t.is_quantized:
                raise UnkeptError(f"{place[-1]} is no plain tensor")
            views.append(t.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        text = {
            "tensors": [[place, str(t.dtype).removeprefix("torch."), list(t.shape)] for place, t in kept.host.items()],
            "values": list(kept.values.items()),
            "random": kept.random,
        }
        words = json.dumps(text, default=lambda t: t.tolist()).encode()
        words += b" " * (-(HEAD + len(words)) % ALIGNED)
        self._views = [memoryview(len(words).to_bytes(HEAD, "big") + words), *views]
        self.size = sum(map(len, self._views))

    def parts(self, begin: int, end: int) -> Iterator[memoryview]:
        """See keepers.State."""
        at = 0
        for view in self._views:
            first, last = max(begin - at, 0), min(end - at, len(view))
            for start in range(first, last, PART):
                yield view[start : min(start + PART, last)]
            at += len(view)


def unpacked(data: memoryview) -> Snapshot:
    """The snapshot, over the same memory."""
    length = int.from_bytes(data[:HEAD], "big")
    text: dict[str, Any] = json.loads(bytes(data[HEAD : HEAD + length]))
    kept, at = Snapshot(random=text["random"]), HEAD + length
    bytes_ = torch.from_numpy(np.frombuffer(data, np.uint8))
    for place, name, shape in text["tensors"]:
        dtype: torch.dtype = getattr(torch, name)
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        flat = bytes_[at : at + size]
        kept.host[tuple(place)] = (flat if at % dtype.itemsize == 0 else flat.clone()).view(dtype).reshape(shape)
        at += size
    kept.values = {tuple(place): value for place, value in text["values"]}
    return kept


def misfit(kept: Snapshot, live: LiveState) -> str:
    """Why a snapshot is none of this model and these optimizers; '' if it is."""
    there = {place: t for place, t in live.tensors() if place[0] != "state"}
    stepped = live.stepped()
    for place in dict.fromkeys((*there, *kept.host, *kept.values)):
        if place[0] == "state":
            if place[1] not in stepped:
                return f"no optimizer that was given to `attach` steps {place[1]}, and the snapshot has its state"
        elif place not in there or place not in kept.host:
            return f"the {place[0]} {place[1]} is in one of the snapshot and the model only"
        elif _form(there[place]) != _form(kept.host[place]):
            return f"the {place[0]} {place[1]} is {_form(there[place])}, and in the snapshot {_form(kept.host[place])}"
    return ""


def _form(t: Tensor) -> str:
    return f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}"


@torch.no_grad()
def make_places(kept: Snapshot, live: LiveState) -> None:
    """Make the optimizer state that a snapshot has and a new optimizer has not, so that it can be put back."""
    stepped = live.stepped()
    for place, value in kept.host.items():
        if place[0] == "state":
            optimizer, p = stepped[place[1]]
            state = optimizer.state.setdefault(p, {})
            old = state.get(place[2])
            if not isinstance(old, Tensor) or _form(local_part(old)) != _form(value):
                state[place[2]] = _like(value, p, place, optimizer)
    for place in kept.values:
        optimizer, p = stepped[place[1]]
        optimizer.state.setdefault(p, {})


def _like(value: Tensor, p: Any, place: Place, optimizer: Any) -> Tensor:
    """As torch's own `load_state_dict` places it: a step count stays on the host where the optimizer takes it there."""
    group = next(g for g in optimizer.param_groups if any(q is p for q in g["params"]))
    counts = place[2] == "step" and not (group.get("capturable") or group.get("fused"))
    made = torch.empty(value.shape, dtype=value.dtype, device="cpu" if counts else p.device)
    if hasattr(p, "device_mesh") and value.shape == local_part(p).shape and place[2] != "step":
        from torch.distributed.tensor import DTensor

        mesh, placements = p.device_mesh, p.placements
        made = DTensor.from_local(made, mesh, placements, run_check=False, shape=p.shape, stride=p.stride())
    return made
