"""A small model under a parallelism: python -m tests.distributed.placement_job OUT MODE:WORLD [MODE:WORLD ...].

Every mode trains the same model on the same global batches; 'single:1' is what all are held against. Ranks are forked.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

import stabwatch
from stabwatch.distributed import summands
from stabwatch.runtime import model_taps

STEPS = int(os.environ.get("PLACEMENT_STEPS", "6"))
MIXED = ("tp", "2d", "tp_sequence", "2d_sequence", "tp_loss")
"""Modes with some parameters that are DTensors, and some that are not."""
PIPELINES = ("1f1b", "gpipe", "1f1b_fsdp", "1f1b_ddp")
INTERLEAVED = {
    "interleaved": ScheduleInterleaved1F1B, "zero_bubble": ScheduleInterleavedZeroBubble, "v": ScheduleZBVZeroBubble,
}  # fmt: skip
"""Schedules with two stages on each rank."""
MICRO_BATCHES = 4
ROUGH = 4
"""Buckets of the sketch of a gradient in a mode that ends in `+rough`."""
GROWS_AT = 3
"""The step at which a layer is added that is not called."""


class Block(nn.Module):
    """A norm and two projections, which may be split by columns and by rows."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(12), nn.Linear(12, 16), nn.Linear(16, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.relu(self.up(self.norm(x))))


class Net(nn.Module):
    """Two blocks between an input and an output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(8, 12)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.leave = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        return self.leave(x)


class First(nn.Module):
    """The first stage of a pipeline."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.enter, self.blocks = net.enter, nn.ModuleList([net.blocks[0]])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[0](self.enter(x))


class Last(nn.Module):
    """The last one, whose list of blocks begins at 0 again."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.blocks, self.leave = nn.ModuleList([net.blocks[1]]), net.leave

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.leave(self.blocks[0](x))


def pipeline(rank: int, world: int, out: Path, mode: str) -> None:
    """One rank of a pipeline of two stages; with four ranks, two pipelines side by side."""
    torch.manual_seed(0)
    net, shares, mine, stage, group = Net(), world // 2, rank % (world // 2), rank // (world // 2), dist.group.WORLD
    part: nn.Module = First(net) if stage == 0 else Last(net)
    if shares > 1:
        mesh = init_device_mesh("cpu", (2, shares), mesh_dim_names=("pp", "dp"))
        group = mesh["pp"].get_group()
        if mode == "1f1b_fsdp":
            fully_shard(part, mesh=mesh["dp"])
        else:
            part = nn.parallel.DistributedDataParallel(part, process_group=mesh["dp"].get_group())
    optimizer = torch.optim.SGD(part.parameters(), lr=0.1)
    settings = {"agent": False, "verbose": False, "every_step": True, "run_dir": out / mode}
    watch = stabwatch.attach(part, optimizer, **settings)
    place = PipelineStage(part, stage, 2, torch.device("cpu"), group=group)
    kind = ScheduleGPipe if mode == "gpipe" else Schedule1F1B
    schedule = kind(place, MICRO_BATCHES, loss_fn=lambda y, x: F.cross_entropy(y, x[:, :4].argmax(1)))
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x = torch.randn(16, 8, generator=generator).chunk(shares)[mine]
        optimizer.zero_grad()
        if stage == 0:
            schedule.step(x)
        else:
            schedule.step(target=x, losses=[])
        optimizer.step()
    _leave(watch, rank, out, mode)


class Quarter(nn.Module):
    """One of four stages: the input layer, a block, a block, and the output layer."""

    def __init__(self, net: Net, number: int) -> None:
        super().__init__()
        self.enter = net.enter if number == 0 else None
        self.blocks = nn.ModuleList(net.blocks[number - 1 : number]) if number in (1, 2) else nn.ModuleList()
        self.leave = net.leave if number == 3 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if self.enter is None else self.enter(x)
        for block in self.blocks:
            x = block(x)
        return x if self.leave is None else self.leave(x)


def interleaved(rank: int, out: Path, mode: str) -> None:
    """One of two ranks, which have two stages each."""
    torch.manual_seed(0)
    net = Net()
    numbers = [[0, 3], [1, 2]][rank] if mode == "v" else [rank, rank + 2]
    parts = nn.ModuleList(Quarter(net, number) for number in numbers)
    optimizer = torch.optim.SGD(parts.parameters(), lr=0.1)
    watch = stabwatch.attach(parts, optimizer, agent=False, verbose=False, every_step=True, run_dir=out / mode)
    places = [PipelineStage(part, n, 4, torch.device("cpu")) for part, n in zip(parts, numbers, strict=True)]
    schedule = INTERLEAVED[mode](places, MICRO_BATCHES, loss_fn=lambda y, x: F.cross_entropy(y, x[:, :4].argmax(1)))
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x = torch.randn(16, 8, generator=generator)
        optimizer.zero_grad()
        schedule.step(*([x] if 0 in numbers else []), **({"target": x, "losses": []} if 3 in numbers else {}))
        optimizer.step()
    _leave(watch, rank, out, mode)


def _leave(watch: stabwatch.Watch, rank: int, out: Path, mode: str) -> None:
    """End a watch; what it says of its coverage is in a file."""
    (out / f"{mode}-coverage-{rank}.json").write_text(json.dumps(watch.coverage()))
    watch.detach()


def parallel(mode: str, model: Net, rank: int, world: int) -> tuple[nn.Module, int, int]:
    """The model as it is called, the number of shares of the batch, and this rank's."""
    if mode == "single":
        return model, 1, 0
    if mode in ("ddp", "zero"):
        return nn.parallel.DistributedDataParallel(model), world, rank
    if mode == "compiled":
        return torch.compile(nn.parallel.DistributedDataParallel(model), backend="eager"), world, rank
    if mode == "manual":
        return model, world, rank
    if mode == "replicate":
        from torch.distributed._composable.replicate import replicate

        return replicate(model), world, rank
    if mode in ("fsdp1", "fsdp1_flat"):
        blocks, origin = ModuleWrapPolicy({Block}), mode == "fsdp1"
        device = torch.device("cpu")
        wrapped = FullyShardedDataParallel(model, auto_wrap_policy=blocks, use_orig_params=origin, device_id=device)
        return wrapped, world, rank
    if mode == "groups":
        return nn.parallel.DistributedDataParallel(model, process_group=_groups()[rank // 2]), 2, rank % 2
    if mode in ("fsdp2", "hsdp", "fsdp2_later", "fsdp2_accumulates"):
        mesh = init_device_mesh("cpu", (world,) if mode != "hsdp" else (2, world // 2))
        if mode == "hsdp":
            mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicate", "shard"))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        return fully_shard(model, mesh=mesh), world, rank
    return _tensor_parallel(mode, model, rank, world)


def _groups() -> list[dist.ProcessGroup]:
    """Two pairs of ranks, each of which trains a model of its own."""
    return [dist.new_group([0, 1]), dist.new_group([2, 3])]


def _tensor_parallel(mode: str, model: Net, rank: int, world: int) -> tuple[nn.Module, int, int]:
    if mode in ("2d", "ddp_tp", "2d_sequence"):
        whole = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("dp", "tp"))
        mesh = whole["tp"]
    else:
        mesh = init_device_mesh("cpu", (world,))
    if mode.endswith("_sequence"):
        model, shares, mine = _sequence_parallel(model, mesh), world // mesh.size(), rank // mesh.size()
        if mode == "2d_sequence":
            for block in model.blocks:
                fully_shard(block, mesh=whole["dp"])
            fully_shard(model, mesh=whole["dp"])
        return model, shares, mine
    for block in model.blocks:
        parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    if mode == "tp_loss":
        parallelize_module(model, mesh, {"leave": ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)})
    if mode in ("tp", "tp_loss"):
        return model, 1, 0
    if mode == "ddp_tp":
        from torch.distributed.tensor.parallel.ddp import _pre_dp_module_transform

        _pre_dp_module_transform(model)
        group = whole["dp"].get_group()
        return nn.parallel.DistributedDataParallel(model, process_group=group), world // 2, rank // 2
    for block in model.blocks:
        fully_shard(block, mesh=whole["dp"])
    return fully_shard(model, mesh=whole["dp"]), world // 2, rank // 2


def _sequence_parallel(model: Net, mesh: DeviceMesh) -> Net:
    """Each rank normalises its share of the rows, so the gradient of a norm's weight is a sum over ranks."""
    rows = Shard(0)
    for block in model.blocks:
        up, down = ColwiseParallel(input_layouts=rows), RowwiseParallel(output_layouts=rows)
        parallelize_module(block, mesh, {"norm": SequenceParallel(sequence_dim=0), "up": up, "down": down})
    split = PrepareModuleInput(input_layouts=(Replicate(),), desired_input_layouts=(rows,), use_local_output=True)
    leave = ColwiseParallel(input_layouts=rows, output_layouts=Replicate())
    parallelize_module(model, mesh, {"blocks.0": split, "leave": leave})
    return model


def early(rank: int, world: int, out: Path, mode: str) -> tuple[Net, stabwatch.Watch]:
    """Attach before the process group is made. In `-launched` the launcher says which rank it is, as torchrun does."""
    if mode.endswith("-launched"):
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world))
    while rank and not (out / mode / "events.jsonl").exists():  # else the folders are named by who comes first
        time.sleep(0.01)
    torch.manual_seed(0)
    inner = Net()
    return inner, stabwatch.attach(inner, agent=False, verbose=False, every_step=True, run_dir=out / mode)


def main(rank: int, world: int, out: Path, mode: str) -> None:
    """One rank."""
    before = early(rank, world, out, mode) if mode.endswith(("-launched", "-spawned")) else None
    if world > 1:
        store = f"file://{out}/store-{mode}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    mode, _, rough = mode.partition("+")
    if rough:  # no gradient that is a sum over ranks is exact
        model_taps.room, summands.LEAST = lambda *_: 0, ROUGH
    if mode in PIPELINES:
        pipeline(rank, world, out, mode)
        return
    if mode in INTERLEAVED:
        interleaved(rank, out, mode)
        return
    torch.manual_seed(0)
    inner = before[0] if before else Net()
    settings = {
        "agent": False,
        "verbose": False,
        "every_step": True,
        "run_dir": out / f"{mode}{'+rough' * bool(rough)}",
    }
    mode, _, first = mode.partition("-")
    watch = before[1] if before else stabwatch.attach(inner, **settings) if first or mode == "fsdp2_later" else None
    model, shares, mine = parallel(mode, inner, rank, world)
    if mode == "zero":
        optimizer = ZeroRedundancyOptimizer(inner.parameters(), torch.optim.SGD, lr=0.1)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=mode not in MIXED)
    if mode == "groups":
        settings["run_dir"] = out / f"{mode}-{rank // 2}"
    watch = watch or stabwatch.attach(model, optimizer, **settings)
    generator = torch.Generator().manual_seed(1 + (rank // 2 if mode == "groups" else 0))
    for step in range(STEPS):
        if first == "grows" and step == GROWS_AT:
            inner.blocks[1].extra = nn.Linear(3, 3)
        x = torch.randn(16, 8, generator=generator)
        part = x.chunk(shares)[mine]
        optimizer.zero_grad()
        pieces = part.chunk(2) if mode in ("fsdp2_accumulates", "tp_sequence") else [part]
        for i, piece in enumerate(pieces):
            if mode == "fsdp2_accumulates":
                model.set_requires_gradient_sync(i == len(pieces) - 1)
            with loss_parallel() if mode == "tp_loss" else nullcontext():
                (F.cross_entropy(model(piece), piece[:, :4].argmax(1)) / len(pieces)).backward()
        if mode == "tp_sequence":  # no number is so large: only the norm of the gradients is asked for
            nn.utils.clip_grad_norm_([p for p in model.parameters() if hasattr(p, "placements")], 1e9, foreach=False)
        if mode in ("fsdp1", "fsdp1_flat"):
            model.clip_grad_norm_(1e9)
        if mode == "manual":
            for p in (p for p in inner.parameters() if p.grad is not None):
                dist.all_reduce(p.grad)
                p.grad /= world
        optimizer.step()
    if mode in ("2d", "tp", "tp_sequence") and not rough:
        _leave(watch, rank, out, mode)
    watch.detach()


def _wait_for_all(rank: int, world: int, out: Path, mode: str) -> None:
    """A rank that exits closes its connections, while others may be in the last collective of the job."""
    (out / f"done-{mode}-{rank}").touch()
    end = time.monotonic() + 10
    while time.monotonic() < end and not all((out / f"done-{mode}-{each}").exists() for each in range(world)):
        time.sleep(0.01)


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    failed = False
    for job in sys.argv[2:]:
        mode, _, world = job.partition(":")
        pids = []
        for rank in range(int(world)):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    main(rank, int(world), out, mode)
                    _wait_for_all(rank, int(world), out, mode)
                    code = 0
                except BaseException:
                    print(mode, rank, traceback.format_exc(), file=sys.stderr, flush=True)
                finally:
                    os._exit(code)
            pids.append(pid)
        codes = [os.waitpid(pid, 0)[1] for pid in pids]
        failed |= any(codes)
    sys.exit(failed)
