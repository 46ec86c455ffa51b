"""One rank of a gloo job in which one rank fails: python -m tests.distributed.rank_job RANK WORLD STORE OUT FAULT."""

from __future__ import annotations

import sys
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F

import stabwatch
from stabwatch.demo import GPT, DemoConfig

STEPS, AT = 96, 30


def main(rank: int, world: int, store: str, out: str, fault: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    torch.manual_seed(0)
    inner = GPT(DemoConfig(width=32, layers=2, heads=2, context=16))
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.05)
    model = torch.nn.parallel.DistributedDataParallel(inner)
    watch = None
    if fault != "unwatched":
        judged = {"on_alert": lambda alert: None} if fault == "nan" else {}
        watch = stabwatch.attach(model, optimizer, agent=False, verbose=False, every_step=True, run_dir=out, **judged)
    odd = rank == world - 1
    generator = torch.Generator().manual_seed(rank)
    for step in range(STEPS):
        rows = torch.randint(0, 256, (4, 17), generator=generator)
        if odd and fault == "flip" and step == AT:
            with torch.no_grad():
                inner.blocks[1].mlp[0].weight.view(torch.int32)[3, 5] ^= 1 << 25  # 16 times as large
        if odd and fault == "slow" and step >= AT:
            time.sleep(0.1)
        if watch is not None:
            watch.log_batch([step * world + rank], shard=f"shard-{rank}")
        logits = model(rows[:, :-1]).flatten(0, 1)
        if odd and fault == "nan" and step == AT:
            logits = logits * float("nan")
        loss = F.cross_entropy(logits, rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if watch is not None:
        watch.detach()
        print("closer until", watch._session._governor._until, flush=True)
    mine = torch.nn.utils.parameters_to_vector(inner.parameters()).detach()
    print("sum", mine.double().sum().item().hex(), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
