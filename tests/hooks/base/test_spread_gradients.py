"""Copies of gradients of which this rank has a summand, and who sends what."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from stabwatch.distributed.topology import Topology
from stabwatch.hooks.base import spread_gradients
from stabwatch.hooks.base.reasons import Reasons
from stabwatch.hooks.base.spread_gradients import TOO_MANY, Spread, SpreadGradients
from stabwatch.hooks.base.tensors import SPREAD
from stabwatch.hooks.probes.layers import ParameterTaps
from stabwatch.runlog import Accumulator
from stabwatch.runtime.coverage import NO_NORM, Coverage

LAYER, OTHER = (Accumulator("gradient", name, "moments") for name in "ab")
GROUP = Accumulator("group", "group0", "group")
NUMBERS = torch.arange(6.0).reshape(2, 3)


@pytest.fixture(scope="module", params=[0, 1, 2, 3])
def rank(request):
    """One of four ranks that never communicate."""
    dist.init_process_group("fake", rank=request.param, world_size=4, store=FakeStore())
    yield request.param
    dist.destroy_process_group()


def _gradient(mesh, *placements):
    return DTensor.from_local(NUMBERS, mesh, placements, run_check=False)


def _ranks_of(rank, *placements, world=4):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    mesh = mesh["tp"] if len(placements) == 1 else mesh
    return Topology(nn.Linear(2, 2), rank, world).ranks_of(_gradient(mesh, *placements))


def test_the_ranks_that_add_up_are_those_along_partial_dimensions_and_replicas_are_sent_once(rank):
    mine, row = (rank // 2 * 2, rank // 2 * 2 + 1), rank % 2
    assert _ranks_of(rank, Replicate(), Partial()) == ((0, 1) if rank < 2 else ())
    assert _ranks_of(rank, Shard(0), Partial()) == mine
    assert _ranks_of(rank, Partial(), Shard(0)) == (row, row + 2)
    assert _ranks_of(rank, Partial(), Partial()) == (0, 1, 2, 3)
    assert _ranks_of(rank, Partial()) == ((0, 1) if rank < 2 else ()), "the mesh is one of two slices"


def test_what_is_no_sum_is_not_known_nor_what_a_rank_without_others_has(rank):
    assert _ranks_of(rank, Replicate(), Partial("max")) is None
    assert _ranks_of(rank, Replicate(), Partial("avg")) is None
    assert _ranks_of(rank, Replicate(), Partial(), world=1) is None


def _spread(*layers):
    return [Spread(layer, GROUP, NUMBERS + i) for i, layer in enumerate(layers)]


def test_what_was_read_last_goes_with_the_step_in_which_it_is_added():
    found = SpreadGradients()
    found.ranks_of = lambda gradient: (0, 1) if gradient[0, 0] == 0 else ()
    assert found.take() is None
    assert not found.read(_spread(LAYER), None) and not found.read(_spread(LAYER, OTHER), torch.tensor(2.0))
    found.add()
    found.read(_spread(LAYER), None)
    taken = found.take()
    assert [(p.layer, p.group, p.ranks, p.size) for p in taken.pieces] == [
        (LAYER, GROUP, (0, 1), 6), (OTHER, GROUP, (), 0),
    ]  # fmt: skip
    assert taken.transfer.wait().tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    assert found.take() is None


def test_they_are_copies():
    found, gradient = SpreadGradients(), torch.ones(3)
    found.ranks_of = lambda gradient: (0, 1)
    found.read([Spread(LAYER, None, gradient)], None)
    found.add()
    gradient.zero_()
    assert found.take().transfer.wait().tolist() == [1, 1, 1]


def test_too_many_numbers_are_not_sent_whichever_rank_sends_them(monkeypatch):
    monkeypatch.setattr(spread_gradients, "MOST", 11)
    for ranks in ((0, 1), ()):
        found = SpreadGradients()
        found.ranks_of = lambda gradient, ranks=ranks: ranks
        assert found.read(_spread(LAYER, OTHER), None) == {"a": TOO_MANY, "b": TOO_MANY}
        found.add()
        assert found.take() is None
        assert not found.read(_spread(LAYER), None)


def test_a_layer_of_which_one_gradient_is_not_known_sends_nothing():
    found = SpreadGradients()
    found.ranks_of = lambda gradient: None if gradient[0, 0] == 1 else (0, 1)
    assert found.read(_spread(LAYER, LAYER, OTHER), None) == {"a": SPREAD}
    found.add()
    assert [piece.layer for piece in found.take().pieces] == [OTHER]


def test_what_is_not_added_up_is_told_with_the_norm_of_all(rank):
    """By each rank: it exchanges nothing, and the bias has a summand on each of two ranks."""
    model = nn.Sequential(nn.Linear(3, 3))
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))["tp"]
    bias = nn.Parameter(DTensor.from_local(torch.ones(3), mesh, [Replicate()], run_check=False))
    model[0].bias = bias
    bias.grad = DTensor.from_local(torch.ones(3), mesh, [Partial()], run_check=False)
    taps = ParameterTaps(model, ["0"], torch.device("cpu"), 1 << 20)
    taps.measure_gradients(torch.optim.SGD(model.parameters()))
    assert not taps.gradient[:, 0].any() and not taps.group[:, 0].any() and taps.spread.take() is None
    told = Coverage((), taps, (), (), Reasons(), lambda probe: None).unmeasurable(set())
    assert [(each["site"], each["reason"]) for each in told] == [("0", SPREAD), ("", NO_NORM)]
