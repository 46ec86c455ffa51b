"""A tensor on its way to the host, copied without waiting for the device."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class HostTransfer:
    """A step's aggregates on their way to the host. `wait` may block, and belongs in the writer's thread.

    flat: an array is there already, and nothing else writes into it.
    among: a longer vector, and the places in it of what is transferred.
    """

    def __init__(
        self,
        flat: Tensor | NDArray[np.float32],
        among: tuple[NDArray[np.float32], NDArray[np.int64]] | None = None,
    ) -> None:
        self._among = among
        self._event: torch.cuda.Event | None = None
        self._host: Tensor | NDArray[np.float32]
        if isinstance(flat, np.ndarray):
            self._host = flat
        elif flat.device.type == "cuda":
            self._host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
            self._host.copy_(flat, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._host = flat.cpu()

    def arrived(self) -> bool:
        """`wait` would not block."""
        return self._event is None or self._event.query()

    @property
    def places(self) -> NDArray[np.int64] | None:
        """The places of what is transferred in the longer vector; None if it is all."""
        return None if self._among is None else self._among[1]

    def wait(self) -> NDArray[np.float32]:
        """The whole vector, once the values have arrived."""
        if self._among is None:
            return self.part()
        blank, places = self._among
        whole = blank.copy()
        whole[places] = self.part()
        return whole

    def part(self) -> NDArray[np.float32]:
        """What is transferred, once it has arrived."""
        if self._event is not None:
            self._event.synchronize()
        return self._host if isinstance(self._host, np.ndarray) else self._host.numpy()
