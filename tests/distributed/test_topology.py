"""What placements say of a model, on one of several ranks that never communicate."""

from __future__ import annotations

import pytest
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState, post_localSGD_hook
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore

from stabwatch.distributed.ranks import Ranks, steps_alone
from stabwatch.distributed.topology import Topology
from stabwatch.hooks.base.tracked import tracked_parameters
from stabwatch.runtime.ranks import left_out

WORLD, RANK = 8, 5


@pytest.fixture(scope="module", autouse=True)
def _job():
    dist.init_process_group("fake", rank=RANK, world_size=WORLD, store=FakeStore())
    yield
    dist.destroy_process_group()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return self.down(self.up(self.enter(x)))


def _topology(model):
    return Topology(model, RANK, WORLD, lambda: tracked_parameters(model, {"enter", "up", "down"}))


@pytest.mark.parametrize("whole", [True, False])
def test_parameters_that_fully_shard_has_left_out_are_named(whole):
    model, mesh = Net(), init_device_mesh("cpu", (WORLD,))
    for name in ("up", "down"):
        fully_shard(getattr(model, name), mesh=mesh)
    if whole:
        fully_shard(model, mesh=mesh)
    assert _topology(model).unaveraged == ([] if whole else ["enter.weight", "enter.bias"])
    assert _topology(Net()).unaveraged == []


def test_what_is_said_of_them():
    assert left_out(["a.weight"]).startswith("a.weight belongs to no module")
    assert left_out(["a.weight", "b"]).startswith("2 parameters (the first is a.weight) belong to no module")


@pytest.mark.parametrize("sharded", [True, False])
def test_the_ranks_of_a_tensor_parallel_group_share_their_data_and_those_of_the_first_group_say_so(sharded):
    """Rank 5 is in the third of four groups; a rank of the first one would name the ranks 0 and 1."""
    mesh = init_device_mesh("cpu", (WORLD // 2, 2), mesh_dim_names=("dp", "tp"))
    model = Net()
    parallelize_module(model, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    if sharded:
        fully_shard(model, mesh=mesh["dp"])
    assert _topology(model).sharing == ()


@pytest.mark.parametrize(
    ("shape", "names", "group"), [((WORLD,), ("tp",), tuple(range(WORLD))), ((2, 4), ("dp", "tp"), ())]
)
def test_one_group_of_all_ranks(shape, names, group):
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    model = Net()
    parallelize_module(model, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    assert _topology(model).sharing == group and not _topology(model).own_data(coupled=True)


def test_ranks_with_shards_only_have_data_of_their_own():
    model = fully_shard(Net(), mesh=init_device_mesh("cpu", (WORLD,)))
    assert _topology(model).sharing == () and _topology(model).own_data(coupled=False)
    assert _topology(Net()).own_data(coupled=True) and not _topology(Net()).own_data(coupled=False)


def test_what_ddp_ignores_is_each_ranks_own():
    """Experts, say: all ranks count theirs, and the first one what all have."""
    model = Net()
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ["up.weight", "up.bias"])
    whole = nn.parallel.DistributedDataParallel(model)
    found = Topology(whole, RANK, WORLD, lambda: tracked_parameters(model, {"enter", "up", "down"}))
    assert found.sharded and [found.counts(p) for p in model.parameters()] == [False, False, True, True, False, False]
    assert not _topology(nn.parallel.DistributedDataParallel(Net())).sharded


@pytest.mark.parametrize(("hook", "alone"), [(allreduce_hook, False), (post_localSGD_hook, True)])
def test_ranks_of_local_sgd_step_on_their_own(hook, alone):
    model = nn.parallel.DistributedDataParallel(Net())
    assert not steps_alone(model)
    model.register_comm_hook(PostLocalSGDState(None, None, 4) if alone else None, hook)
    assert steps_alone(nn.Sequential(model)) == alone


def test_a_group_of_one_rank_keeps_nothing_equal():
    """Each rank trains a model of its own, below a wrapper."""
    alone = nn.parallel.DistributedDataParallel(Net(), process_group=dist.new_group([RANK]))
    assert not Ranks(alone, "auto").coupled and Ranks(nn.parallel.DistributedDataParallel(Net()), "auto").coupled


def test_ranks_whose_weights_are_averaged_now_and_then_step_on_their_own():
    """Without a hook of DistributedDataParallel: the loop calls the averager."""
    model = Net()
    averager = object.__new__(PeriodicModelAverager)
    assert steps_alone(model)
    del averager
    assert not steps_alone(model)
