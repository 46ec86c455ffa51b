"""One rank of a gloo job that goes on from the state in its checkpoint.

python -m tests.distributed.resume_job RANK WORLD STORE OUT GIVEN   (GIVEN: the folder is given to `attach`)
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import stabwatch


def train(settings: dict[str, Any], steps: int, state: list[Any]) -> dict[str, Any]:
    """Train some steps, from a state if there is one; the state after them, as rank 0 saves it."""
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watch = stabwatch.attach(model, optimizer, agent=False, verbose=False, every_step=True, **settings)
    dist.broadcast_object_list(state)
    if state[0] is not None:
        watch.load_state_dict(state[0])
    for _ in range(steps):
        model(torch.ones(3, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    found = watch.state_dict()
    watch.detach()
    return found


if __name__ == "__main__":
    rank, world, store, out, given = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:6]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    where = {"run_dir": f"{out}/run"} if given == "given" else {"root": out}
    state = train(where, 6, [None])
    dist.barrier()
    assert train(where, 4, [state if rank == 0 else None])["step"] == 10
    dist.destroy_process_group()
