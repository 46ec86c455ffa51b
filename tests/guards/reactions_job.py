"""One rank of a two-process gloo job with guards that act: python -m tests.guards.reactions_job RANK STORE OUT."""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import stabwatch

STEPS, BROKEN = 120, 20


def train(rank: int, guard: str, out: str) -> dict[str, object]:
    """Train replicas; rank 1 gets a batch of NaN once. Rank 0 alone judges."""
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 5))
    model = nn.parallel.DistributedDataParallel(inner)
    optimizer = torch.optim.Adam(inner.parameters(), lr=1e-3)
    settings = {"agent": False, "verbose": False, "every_step": True, "run_dir": f"{out}/{guard}"}
    watch = stabwatch.attach(model, optimizer, guard=guard, snapshot_every=20, **settings)
    generator = torch.Generator().manual_seed(rank)
    stopped = None
    for step in range(STEPS):
        x = torch.randn(16, 20, generator=generator)
        spoiled = x * float("nan") if rank == 1 and step == BROKEN else x
        loss = F.cross_entropy(model(spoiled), x[:, :5].argmax(1))
        optimizer.zero_grad()
        loss.backward()
        try:
            optimizer.step()
        except stabwatch.TrainingUnstableError:
            stopped = step
            break
    watch.detach()
    mine = nn.utils.parameters_to_vector(inner.parameters()).detach()
    both = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(both, mine)
    return {
        "apart": float((both[0] - both[1]).abs().max()),
        "finite": bool(mine.isfinite().all()),
        "stopped": stopped,
    }


def main(rank: int, store: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    guards = ("snapshot,lr_backoff", "skip_step", "raise")
    print("found", json.dumps({guard: train(rank, guard, out) for guard in guards}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
