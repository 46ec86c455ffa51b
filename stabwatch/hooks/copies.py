"""Copies of parameters, held while the optimizer steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_ALIGN = 64


class Copies:
    """Makes copies that live until the next call.

    On the CPU in memory that is kept: fresh pages cost seven times what the copying does (28.6 ms against 3.9 ms for
    10.6 M float32). An accelerator's caching allocator has no such cost, and there the memory is given back.
    """

    def __init__(self) -> None:
        self._pool = torch.empty(0, dtype=torch.uint8)

    def of(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """A copy of each, of the same shape."""
        room = sum(_padded(t) for t in tensors if t.device.type == "cpu")
        if room > len(self._pool):
            self._pool = torch.empty(room, dtype=torch.uint8)
        out, start = [], 0
        for t in tensors:
            if t.device.type != "cpu":
                out.append(t.clone())
                continue
            raw = self._pool[start : start + t.numel() * t.element_size()]
            out.append(raw.view(t.dtype).view(t.shape).copy_(t))
            start += _padded(t)
        return out


def _padded(t: Tensor) -> int:
    return -(-t.numel() * t.element_size() // _ALIGN) * _ALIGN
