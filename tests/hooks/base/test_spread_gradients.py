"""Sketches of gradients of which this rank has a summand, and who sends what."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from stabwatch.distributed.summands import LEAST, OVERHEAD, Place, deviation
from stabwatch.distributed.topology import Topology
from stabwatch.hooks.base.reasons import Reasons
from stabwatch.hooks.base.spread_gradients import Spread, SpreadGradients, estimated
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


def _place_of(rank, *placements, world=4):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    mesh = mesh["tp"] if len(placements) == 1 else mesh
    return Topology(nn.Linear(2, 2), rank, world).place_of(_gradient(mesh, *placements))


def test_all_ranks_but_replicas_send_something_and_those_along_partial_dimensions_have_the_same_place(rank):
    every = (0, 1, 2, 3)
    assert _place_of(rank, Replicate(), Partial()) == Place((0, 1) if rank < 2 else (), 0, 1, 6)
    assert _place_of(rank, Shard(0), Partial()) == Place(every, rank // 2, 2, 6)
    assert _place_of(rank, Partial(), Shard(1)) == Place(every, rank % 2, 2, 6)
    assert _place_of(rank, Shard(0), Shard(1)) == Place(every, rank, 4, 6)
    assert _place_of(rank, Partial(), Partial()) == Place(every, 0, 1, 6)
    assert _place_of(rank, Partial()) == Place((0, 1) if rank < 2 else (), 0, 1, 6), "the mesh is one of two slices"


def test_what_is_no_sum_is_not_known_nor_what_a_rank_without_others_has(rank):
    assert _place_of(rank, Replicate(), Partial("max")) is None
    assert _place_of(rank, Replicate(), Partial("avg")) is None
    assert _place_of(rank, Replicate(), Partial(), world=1) is None


def _spread(*layers):
    return [Spread(layer, GROUP, NUMBERS + i) for i, layer in enumerate(layers)]


def _gradients(place_of=lambda gradient: Place((0, 1), 0, 1, 6), room=1000):
    found = SpreadGradients()
    found.place_of, found.room = place_of, lambda: room
    return found


def test_what_was_read_last_goes_with_the_step_in_which_it_is_added():
    found = _gradients(lambda gradient: Place((0, 1) if gradient[0, 0] == 0 else (), 0, 1, 6))
    assert found.take() is None
    assert not found.read(_spread(LAYER), None) and not found.read(_spread(LAYER, OTHER), torch.tensor(2.0))
    found.add()
    found.read(_spread(LAYER), None)
    taken = found.take()
    assert [(p.layer, p.group, p.ranks and p.ranks[0], p.size, p.elements) for p in taken.pieces] == [
        (LAYER, GROUP, 2, 6, 6), (OTHER, GROUP, None, 6, 6),
    ]  # fmt: skip
    assert taken.transfer.wait().tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    assert found.take() is None and found.estimates is None


def test_they_are_copies():
    found, gradient = _gradients(), torch.ones(6)
    found.read([Spread(LAYER, None, gradient)], None)
    found.add()
    gradient.zero_()
    assert found.take().transfer.wait().tolist() == [1] * 6


def test_numbers_beyond_the_room_are_estimated_whichever_rank_sends_them():
    large = torch.ones(5000)
    for ranks in ((0, 1), ()):
        found = _gradients(lambda gradient, ranks=ranks: Place(ranks, 0, 1, gradient.numel()), 2 * 32 + 2 * OVERHEAD)
        assert not found.read([Spread(LAYER, GROUP, large), Spread(OTHER, GROUP, large[:20])], None)
        found.add()
        assert [(p.size, p.elements) for p in found.take().pieces] == [(44, 5000), (20, 20)]
        assert found.estimates == estimated(["a"], 44) and "up to about 11 %" in found.estimates
    twice = _gradients(lambda gradient: Place((0, 1), 0, 1, gradient.numel()), 100)
    for layer in (LAYER, OTHER):  # two optimizers share the room
        twice.read([Spread(layer, GROUP, large)], None)
        twice.add()
    assert [p.size for p in twice.take().pieces] == [92, LEAST]


def test_a_layer_of_which_one_gradient_is_not_known_sends_nothing():
    found = _gradients(lambda gradient: None if gradient[0, 0] == 1 else Place((0, 1), 0, 1, 6))
    assert found.read(_spread(LAYER, LAYER, OTHER), None) == {"a": SPREAD}
    found.add()
    assert [piece.layer for piece in found.take().pieces] == [OTHER]


def _sent(taps, found):
    taps.read(found, None)
    taps.add()
    return taps.take().transfer.wait()


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("room", [200, 5000])
def test_sketches_that_are_added_up_are_the_sketch_of_the_sum(shards, room):
    """On three ranks for each shard. Of several gradients of one form and another form, exact or not."""
    rng = torch.Generator().manual_seed(0)
    whole = {LAYER: [torch.randn(3, 1000, generator=rng)] * 2, OTHER: [torch.randn(3, 77, generator=rng)]}
    added = 0
    for shard in range(shards):

        def place_of(gradient, shard=shard):
            size = {1000: 1000, 500: 500, 77: 77, 39: 39, 38: 39}[gradient.numel()]
            return Place(tuple(range(3 * shards)), shard, shards, size)

        def of(rank, shard=shard):
            return [Spread(a, None, (x.sum(0) if rank is None else x[rank]).chunk(shards)[shard])
                    for a, parts in whole.items() for x in parts]  # fmt: skip

        summands = [_sent(_gradients(place_of, room), of(rank)) for rank in range(3)]
        once = _sent(_gradients(place_of, room), of(None))
        np.testing.assert_allclose(sum(summands), once, atol=1e-4)
        added = added + once
    if room == 5000:
        norms = [x.sum(0).norm() for parts in whole.values() for x in parts]
        pieces = np.split(added, [1000, 2000])
        np.testing.assert_allclose([np.linalg.norm(each) for each in pieces], norms, rtol=1e-6)


ALIKE, HEAVY = torch.ones(1000), torch.randn(1000, generator=torch.Generator().manual_seed(0)) ** 3
REGULAR = torch.where(torch.arange(1000) % 50 == 0, 1.0, 0.01)


@pytest.mark.parametrize("x", [ALIKE, HEAVY, REGULAR], ids=["alike", "heavy", "regular"])
def test_the_squared_norm_of_a_sketch_is_right_on_average_and_so_is_what_is_said_of_its_deviation(x):
    """Of the gradients of 500 layers, each in four models whose layers are called otherwise, on four shards."""
    size, layers = 50, 500
    found = []
    for shard in range(4):
        for model in range(4):
            names = [Accumulator("gradient", f"{model}.{i}", "moments") for i in range(layers)]
            taps = _gradients(lambda gradient, s=shard: Place((0, 1), s, 4, 1000), layers * (size + OVERHEAD))
            found.append(_sent(taps, [Spread(name, None, x) for name in names]).reshape(layers, size))
    ratio = np.square(np.concatenate(found)).sum(1) / float(x.square().sum())
    said = 2 * deviation(size)
    assert abs(ratio.mean() - 1) < 4 * said / len(ratio) ** 0.5
    assert 0.5 * said < ratio.std() < 1.2 * said


def test_what_is_not_added_up_is_told_with_the_norm_of_all(rank):
    """By each rank: it exchanges nothing, and the bias has a summand on each of two ranks."""
    model = nn.Sequential(nn.Linear(3, 3))
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))["tp"]
    bias = nn.Parameter(DTensor.from_local(torch.ones(3), mesh, [Replicate()], run_check=False))
    model[0].bias = bias
    bias.grad = DTensor.from_local(torch.ones(3), mesh, [Partial()], run_check=False)
    taps = ParameterTaps(model, ["0"], torch.device("cpu"), 1 << 20)
    taps.read_gradients(torch.optim.SGD(model.parameters()))
    taps.add_gradients()
    assert not taps.gradient[:, 0].any() and not taps.group[:, 0].any() and taps.spread.take() is None
    told = Coverage((), taps, (), (), Reasons(), lambda probe: None).unmeasurable(set())
    assert [(each["site"], each["reason"]) for each in told] == [("0", SPREAD), ("", NO_NORM)]
