"""One rank of a gloo job, once for each mode: python -m tests.distributed.ddp_job RANK WORLD STORE OUT MODE..."""

from __future__ import annotations

import json
import sys
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F

import stabwatch
from stabwatch.demo import GPT, DemoConfig

STEPS = 24


def batch(step: int) -> torch.Tensor:
    """The global batch of a step: 8 rows."""
    return torch.randint(0, 256, (8, 17), generator=torch.Generator().manual_seed(step))


def train(rank: int, world: int, out: str, mode: str) -> int:
    """Train replicas on their shares of each batch; how many all-gathers there were."""
    torch.manual_seed(0)
    inner = GPT(DemoConfig(width=32, layers=2, heads=2, context=16))
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.05)
    settings = {"agent": False, "verbose": False, "every_step": True, "run_dir": f"{out}/{mode}"}
    watch = None
    with mock.patch.object(dist, "all_gather_into_tensor", wraps=dist.all_gather_into_tensor) as gather:
        if mode == "inner":  # attached first, wrapped afterwards
            watch = stabwatch.attach(inner, optimizer, **settings)
        model = torch.nn.parallel.DistributedDataParallel(inner)
        if mode == "wrapped" or (mode == "alone" and rank == 0):
            watch = stabwatch.attach(model, optimizer, **settings)
        for step in range(STEPS):
            rows = batch(step).chunk(world)[rank]
            loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if watch is not None:
            watch.detach()
    return gather.call_count


def main(rank: int, world: int, store: str, out: str, *modes: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    print("collectives", json.dumps({mode: train(rank, world, out, mode) for mode in modes}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
