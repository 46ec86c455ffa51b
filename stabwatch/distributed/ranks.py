"""The merge over ranks: one packed collective per step, with the same merge operators as everywhere.

It runs at every step, measured or not, because a collective must not depend on what a rank measures.

Every rank contributes its flat vector to one all-gather. The accumulators are merged on the host by their operators, so
sums, maxima and 'not measured' need no separate collectives. Values of replicated gradients and weights must not be
summed. They are merged by maximum, which is the value itself when the ranks agree.

No collective is issued before every rank has attached, so a watch on a single rank cannot hang a job. Ranks announce
themselves in the process group's store. Then rank 0 sets a step, a few ahead, from which all of them take part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from stabwatch.runlog import Accumulator, RecordLayout

REPLICATED = ("gradient", "group", "weight", "update", "matrix", "matrix_update", "optimizer")
AHEAD = 8
"""Steps between the agreement and the first collective, more than ranks of one job can be apart."""
_PATIENCE = 200
"""Steps to wait for the other ranks before giving up."""
_attached = 0


class Ranks:
    """The ranks of a data-parallel or sharded job. With one rank, everything is a no-op."""

    def __init__(self, model: nn.Module, mode: str) -> None:
        global _attached
        ready = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if ready else 0
        self.world = dist.get_world_size() if ready else 1
        self._wanted = mode == "auto" and self.world > 1
        self._coupled = isinstance(model, nn.parallel.DistributedDataParallel)
        self.sharded = any(hasattr(p, "_local_tensor") for p in model.parameters())
        self._start: int | None = None
        self.gave_up = False
        self.key = f"stabwatch/{_attached}"
        if self._wanted:
            _attached += 1
            self.store: Any = dist.distributed_c10d._get_default_store()
            self.store.set(f"{self.key}/{self.rank}", "1")

    def seen_in_forward(self) -> None:
        """Called during a forward, to detect a data-parallel wrapper that was added after `attach`."""
        if self._wanted and not self._coupled:
            ddp = nn.parallel.DistributedDataParallel
            self._coupled = getattr(ddp, "_active_ddp_module", None) is not None

    @property
    def active(self) -> bool:
        """True once collectives have been agreed on."""
        return self._start is not None

    def joins(self, step: int) -> bool:
        """Whether this step is merged over ranks; the same on every rank."""
        if not self._wanted or self.gave_up or not (self._coupled or self.sharded):
            return False
        if self._start is None:
            self._agree(step)
        return self._start is not None and step >= self._start

    def _agree(self, step: int) -> None:
        if self.rank == 0 and step <= _PATIENCE:
            if self.store.check([f"{self.key}/{r}" for r in range(self.world)]):
                self.store.set(f"{self.key}/start", str(step + AHEAD))
        elif self.rank == 0:
            self.gave_up = True
            self.store.set(f"{self.key}/start", "never")
        if self.store.check([f"{self.key}/start"]):
            start = self.store.get(f"{self.key}/start").decode()
            self.gave_up = start == "never"
            self._start = None if self.gave_up else int(start)

    def gather(self, flat: Tensor) -> Callable[[], Tensor]:
        """Start the collective of this step. Calling the result waits and returns (world, columns)."""
        out = torch.empty((self.world, flat.numel()), dtype=flat.dtype, device=flat.device)
        work = dist.all_gather_into_tensor(out.view(-1), flat, async_op=True)

        def wait() -> Tensor:
            work.wait()
            return out

        return wait


def merge_ranks(table: RecordLayout, rows: NDArray[np.floating], sharded: bool) -> NDArray[np.float64]:
    """Merge (ranks, columns) into (columns,); NaN where no rank measured."""
    merged = table.operators.merge(rows)
    same = np.zeros(table.width, dtype=bool)
    for cell, start, fields in zip(table.cells, table.starts, table.fields, strict=True):
        same[start : start + len(fields)] = is_replicated(cell, sharded)
    filled = table.operators.with_identity(rows)
    absent = np.isnan(table.operators.with_nan(rows)) & ~np.isnan(
        filled
    )  # zeros there would win against a negative sum
    largest = np.where(absent, -np.inf, filled)[:, same].max(axis=0, initial=-np.inf)
    merged[same] = np.where(np.isnan(merged[same]), np.nan, largest)
    return merged


def is_replicated(cell: Accumulator, sharded: bool) -> bool:
    """Whether every rank has the same value: norms from clipping always, parameters unless sharded."""
    return cell.tap in REPLICATED and (cell.reduction == "clip" or not sharded)
