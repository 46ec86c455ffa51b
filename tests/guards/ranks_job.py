"""One rank of a two-process gloo job with a guard: python -m tests.guards.ranks_job RANK STORE."""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from stabwatch.guards import TaylorGuard

STEPS, SPIKE_AT, BREAKS_AT = 40, 24, 20


def train(rank: int, mode: str) -> dict[str, float]:
    """Train on batches that differ by rank, with a step 10,000 times too long; the guard's and the weights' state."""
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 5))
    model = nn.parallel.DistributedDataParallel(inner)
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.1)
    watched = inner if mode == "inner" else model
    guard = TaylorGuard(optimizer, watched) if mode != "alone" or rank == 0 else None
    generator = torch.Generator().manual_seed(rank)
    for step in range(STEPS):
        if mode == "broken" and rank == 1 and step == BREAKS_AT:
            guard._probe.rates = lambda *_: 1 / 0
        optimizer.param_groups[0]["lr"] = 1e3 if step == SPIKE_AT else 0.1
        x = torch.randn(16, 20, generator=generator)
        loss = F.cross_entropy(model(x), x[:, :5].argmax(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mine = nn.utils.parameters_to_vector(inner.parameters()).detach()
    both = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(both, mine)
    return {
        "apart": float((both[0] - both[1]).abs().max()),
        "limited": int(guard.interventions) if guard else 0,
        "loss": loss.item(),
    }


def main(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    print(
        "found", json.dumps({mode: train(rank, mode) for mode in ("wrapped", "inner", "broken", "alone")}), flush=True
    )
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
