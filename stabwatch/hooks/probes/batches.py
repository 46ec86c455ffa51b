"""Which batch a step was trained on: what the user says of it, and a fingerprint of the model's first input."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stabwatch.hooks.base.host_transfer import HostTransfer
from stabwatch.hooks.base.tensors import is_plain, tensors_in
from stabwatch.kernels.where import on_host

KEPT = 256
"""Forwards of which the batch is remembered."""
FIRST = 8
"""Numbers of a batch that are kept as they are: the ids of its first tokens."""
SAMPLED = 1 << 13
"""Most numbers of a batch that its fingerprint reads, evenly spaced."""
MOST_INDICES = 4096
_WORD = (1 << 64) - 1
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(batch: Tensor) -> str:
    """16 hexadecimal digits that tell one batch from another, as they stand in the run log.

    Of the bits of at most 8,192 of its numbers, evenly spaced, so its dtype counts, and its shape does not. The same
    on every device. Waits for the device: to look for a batch afterwards.
    """
    bits = _bits(batch)
    return _hex(_host_digest(bits.numpy()) if on_host(bits) else int(_digest(bits)))


def _bits(batch: Tensor) -> Tensor:
    """The numbers of a batch as integers, (n,); floating-point ones as their bits."""
    flat = batch.detach().reshape(-1)
    return flat.view(_BITS[flat.element_size()]) if flat.is_floating_point() else flat


def _digest(bits: Tensor) -> Tensor:
    some = bits[:: -(-len(bits) // SAMPLED) or 1].to(torch.int64)
    return (some * _weights(len(some), some.device)).sum() + len(bits)


def _host_digest(bits: NDArray[Any]) -> int:
    """The same number where the batch is in the host's memory."""
    some = bits[:: -(-len(bits) // SAMPLED) or 1].astype(np.int64, copy=False)
    return int(np.dot(some, _host_weights(len(some)))) + len(bits)


@lru_cache(maxsize=16)
def _host_weights(n: int) -> NDArray[np.int64]:
    return _weights(n, torch.device("cpu")).numpy()


@lru_cache(maxsize=16)
def _weights(n: int, device: torch.device) -> Tensor:
    """Odd numbers without a pattern, int64 (n,): the mixing steps of splitmix64."""
    x = torch.arange(1, n + 1, device=device) * -7046029254386353131
    x = (x ^ (x >> 30)) * -4658895280553007687
    return (x ^ (x >> 27)) | 1


def _hex(digest: int) -> str:
    return f"{digest & _WORD:016x}"


class _Seen(NamedTuple):
    step: int
    row: int
    shape: torch.Size
    dtype: torch.dtype


class Batches:
    """Remembers the batches of the last forwards.

    A digest goes to its row on the host behind the work that is queued already, and nobody waits for it: it is there
    when a record of the same step is.
    """

    def __init__(self, device: torch.device) -> None:
        self._rows = torch.zeros((KEPT, 1 + FIRST), dtype=torch.int64, pin_memory=device.type == "cuda")
        self._host = self._rows.numpy()
        self._seen: deque[_Seen] = deque(maxlen=KEPT)
        self._sent: deque[tuple[int, HostTransfer | list[Any] | None, dict[str, Any]]] = deque(maxlen=KEPT)
        self._next = 0

    def forward_begins(self, step: int, inputs: Iterable[Any]) -> None:
        """The model is called: its first tensor is the batch, one of whole numbers (token ids) before any other."""
        tensors = [t for t in tensors_in(tuple(inputs)) if is_plain(t) and t.element_size() in _BITS]
        batch = next((t for t in tensors if not t.is_floating_point()), tensors[0] if tensors else None)
        if batch is None:
            return
        if on_host(batch):
            numbers = batch.numpy().reshape(-1) if batch.dtype is torch.int64 else _bits(batch).numpy()
            here, digest = self._host[self._next], _host_digest(numbers) & _WORD
            here[0] = digest - (digest >> 63 << 64)
            here[1 : 1 + FIRST][: len(numbers)] = numbers[:FIRST]
        else:
            row, bits = self._rows[self._next], _bits(batch)
            row[0].copy_(_digest(bits), non_blocking=True)
            row[1 : 1 + len(bits)].copy_(bits[:FIRST], non_blocking=True)
        self._seen.append(_Seen(step, self._next, batch.shape, batch.dtype))
        self._next = (self._next + 1) % KEPT

    def send(self, step: int, indices: Any, facts: dict[str, Any]) -> None:
        """What the user says of the batch of this step."""
        if isinstance(indices, Tensor):
            kept: HostTransfer | list[Any] | None = HostTransfer(indices.detach().reshape(-1)[:MOST_INDICES].clone())
        else:
            kept = None if indices is None else list(indices)[:MOST_INDICES]
        self._sent.append((step, kept, facts))

    def of(self, first: int, last: int) -> list[dict[str, Any]]:
        """What is known of the batches of the steps `first` to `last`; for the writer's thread."""
        said = [
            {"step": step, **({} if kept is None else {"indices": _numbers(kept)}), **facts}
            for step, kept, facts in tuple(self._sent)
            if first <= step <= last
        ]
        seen = [self._entry(s) for s in tuple(self._seen) if first <= s.step <= last]
        return sorted(said + seen, key=lambda entry: entry["step"])

    def _entry(self, seen: _Seen) -> dict[str, Any]:
        digest, *first = self._rows[seen.row].tolist()
        dtype = str(seen.dtype).removeprefix("torch.")
        entry = {"step": seen.step, "fingerprint": _hex(digest), "shape": list(seen.shape), "dtype": dtype}
        return entry if seen.dtype.is_floating_point else {**entry, "first": first[: math.prod(seen.shape)]}


def _numbers(kept: HostTransfer | list[Any]) -> list[Any]:
    return (
        kept.wait().tolist()
        if isinstance(kept, HostTransfer)
        else [int(i) if hasattr(i, "__index__") else i for i in kept]
    )
