"""The gradient of a rank's shard of a parameter, where it is spread over ranks in another way than that."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from stabwatch.hooks.base.tensors import gradient_shard, is_elsewhere, of_this_rank

WORLD = 4
WHOLE = torch.arange(30.0).reshape(10, 3)


@pytest.fixture(scope="module")
def rank():
    """The last of four ranks that never communicate."""
    dist.init_process_group("fake", rank=WORLD - 1, world_size=WORLD, store=FakeStore())
    yield WORLD - 1
    dist.destroy_process_group()


def _parameter(mesh, placements, found, gradient):
    """A parameter, and the gradient that a rank has of it."""
    parameter = nn.Parameter(distribute_tensor(torch.zeros(10, 3), mesh, placements))
    parameter.grad = DTensor.from_local(found, mesh, gradient, run_check=False, shape=(10, 3), stride=(3, 1))
    return parameter


@pytest.mark.parametrize("axis", [0, 1])
def test_of_a_whole_gradient_it_is_the_part_that_is_the_ranks(rank, axis):
    """10 rows and 3 columns are no multiple of 4: the last rank has one row, and none of the columns."""
    p = _parameter(init_device_mesh("cpu", (WORLD,)), [Shard(axis)], WHOLE, [Replicate()])
    found = gradient_shard(p)
    assert found.shape == p._local_tensor.shape and not is_elsewhere(p)
    parts = WHOLE.chunk(WORLD, axis)
    assert torch.equal(found, parts[rank] if rank < len(parts) else WHOLE.narrow(axis, 0, 0))


def test_in_two_dimensions_of_which_one_is_alike(rank):
    mesh = init_device_mesh("cpu", (2, 2))
    mine = WHOLE[:, :2] if rank % 2 == 0 else WHOLE[:, 2:]
    p = _parameter(mesh, [Shard(0), Shard(1)], mine, [Replicate(), Shard(1)])
    assert torch.equal(gradient_shard(p), mine.chunk(2)[rank // 2])


@pytest.mark.parametrize(("has", "wanted"), [(Partial(), Shard(0)), (Partial(), Replicate()), (Shard(1), Shard(0)),
                                             (Shard(0), Replicate())])  # fmt: skip
def test_what_another_rank_has_is_not_made_up(rank, has, wanted):
    found = WHOLE if has.is_partial() else WHOLE.chunk(WORLD, has.dim)[min(rank, 2)]
    p = _parameter(init_device_mesh("cpu", (WORLD,)), [wanted], found, [has])
    assert gradient_shard(p) is None and is_elsewhere(p)


def test_of_an_input_it_is_what_this_rank_has(rank):
    mesh = init_device_mesh("cpu", (WORLD,))
    shard, summand = (DTensor.from_local(WHOLE, mesh, [p], run_check=False) for p in (Shard(0), Partial()))
    assert type(of_this_rank(shard)) is torch.Tensor and torch.equal(of_this_rank(shard), WHOLE)
    assert of_this_rank(summand) is None
    assert of_this_rank(WHOLE) is WHOLE and of_this_rank("name") == "name"


def test_of_plain_tensors_it_is_the_gradient():
    p = nn.Parameter(torch.zeros(3))
    assert gradient_shard(p) is None and not is_elsewhere(p)
    p.grad = torch.ones(3)
    assert torch.equal(gradient_shard(p), torch.ones(3)) and not is_elsewhere(p)
