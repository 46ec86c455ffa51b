"""One rank of a gloo job whose ranks step on their own and average their weights by hand, once for each way.

python -m tests.distributed.local_job RANK WORLD STORE OUT WAY...
"""

from __future__ import annotations

import sys
from contextlib import nullcontext

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import stabwatch

STEPS, BETWEEN = 120, 20
"""Steps, and those between two averages."""


def _averaged(x: Tensor) -> Tensor:
    dist.all_reduce(x)
    return x.div_(dist.get_world_size())


def data(model: nn.Module) -> None:
    """Each parameter, in place."""
    for p in model.parameters():
        _averaged(p.data)


def flat(model: nn.Module) -> None:
    """All parameters in one buffer."""
    mean = _averaged(nn.utils.parameters_to_vector(model.parameters()).detach())
    nn.utils.vector_to_parameters(mean, model.parameters())


def states(model: nn.Module) -> None:
    """The state dict, which is loaded again."""
    model.load_state_dict({key: _averaged(value.clone()) for key, value in model.state_dict().items()})


def never(model: nn.Module) -> None:
    """It was forgotten."""


def unsynchronised(model: nn.Module) -> None:
    """Each parameter of a model below DistributedDataParallel."""
    data(model)


WAYS = {f.__name__: f for f in (data, flat, states, never, unsynchronised)}


def train(rank: int, out: str, way: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    wrapper = nn.parallel.DistributedDataParallel(model) if way == "unsynchronised" else model
    watch = stabwatch.attach(wrapper, optimizer, agent=False, verbose=False, run_dir=f"{out}/{way}")
    dist.barrier()
    generator = torch.Generator().manual_seed(rank)
    for step in range(STEPS):
        x = torch.randn(16, 8, generator=generator)
        optimizer.zero_grad()
        with wrapper.no_sync() if way == "unsynchronised" else nullcontext():
            loss = F.cross_entropy(wrapper(x), x[:, :4].argmax(1))
            loss.backward()
        optimizer.step()
        if step % BETWEEN == BETWEEN - 3:
            WAYS[way](model)
        if step % 10 == 0:
            dist.all_reduce(loss.detach())  # for a log
    watch.detach()


def main(rank: int, world: int, store: str, out: str, *ways: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    for way in ways:
        train(rank, out, way)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
