"""A step from which all ranks do something together, for guards that need a collective of their own.

Ranks announce themselves in the job's store. Then rank 0 sets a step, a few ahead, from which all of them take part. So
a guard on a single rank cannot hang a job.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from stabwatch.distributed.ranks import Ranks

AHEAD = 8
"""Steps between the agreement and its step: more than ranks of one job can be apart."""
PATIENCE = 200
"""Steps to wait for the other ranks before giving up."""


class StepAgreement:
    """Of ranks that train one model with DistributedDataParallel; with one rank, nothing is ever agreed."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._start: int | None = None
        self._gave_up = False
        if ranks.wanted:
            self._key = ranks.next_key("agreement")
            self._store: Any = dist.distributed_c10d._get_default_store()
            self._store.set(f"{self._key}/{ranks.rank}", "1")

    def joins(self, step: int) -> bool:
        """Whether all ranks act at this step; the same on every rank."""
        if not self._ranks.wanted or self._gave_up or not self._ranks.coupled:
            return False
        if self._start is None:
            self._agree(step)
        return self._start is not None and step >= self._start

    def _agree(self, step: int) -> None:
        if self._ranks.rank == 0 and step <= PATIENCE:
            if self._store.check([f"{self._key}/{r}" for r in range(self._ranks.world)]):
                self._store.set(f"{self._key}/start", str(step + AHEAD))
        elif self._ranks.rank == 0:
            self._gave_up = True
            self._store.set(f"{self._key}/start", "never")
        if self._store.check([f"{self._key}/start"]):
            start = self._store.get(f"{self._key}/start").decode()
            self._gave_up = start == "never"
            self._start = None if self._gave_up else int(start)
