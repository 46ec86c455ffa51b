"""The step's buffer: what was collected, once, whatever the extent, and taken over where the model changes."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
import torch

from stabwatch.hooks.base.run_accumulators import BASICS
from stabwatch.hooks.base.tensors import new_accumulator
from stabwatch.runlog import Accumulator
from stabwatch.runtime.step_buffer import Extent, StepBuffer, identity_of_all

CPU = torch.device("cpu")


def _buffer(tensors):
    buffer = StepBuffer(CPU)
    for accumulators, tensor in tensors:
        buffer.add(accumulators, lambda tensor=tensor: tensor)
    return buffer


def _basics():
    return torch.cat([new_accumulator(a.reduction, CPU) for a in BASICS])


def _moments(layer):
    return (Accumulator("activation", layer, "moments"),), new_accumulator("moments", CPU)


@pytest.mark.parametrize("extent", list(Extent))
def test_a_step_gives_what_its_extent_fills_and_leaves_the_rest(extent):
    basics, (layer, moments) = _basics(), _moments("a")
    buffer = _buffer([(BASICS, basics), (layer, moments)])
    for _ in range(2):
        basics += 1.0
        moments[0] += 3.0
        found = buffer.send(extent).wait()
        blank = identity_of_all(buffer.accumulators)
        width = len(basics)
        assert (found[:width] == blank[:width] + 1.0).all()
        assert found[width] == (3.0 if extent is Extent.ALL else 0.0)
        moments[0] -= 0.0 if extent is Extent.ALL else 3.0
        assert (basics.numpy() == blank[:width]).all()


def test_a_source_that_returns_another_tensor_is_followed():
    held = {"x": new_accumulator("moments", CPU)}
    buffer = StepBuffer(CPU)
    buffer.add((Accumulator("activation", "a", "moments"),), lambda: held["x"])
    for value in (1.0, 2.0):
        held["x"] = new_accumulator("moments", CPU)
        held["x"][0] = value
        assert buffer.flush()[0] == value and held["x"][0] == 0.0


def test_accumulators_of_different_reductions_in_one_tensor_are_taken_over():
    old, new = _basics(), _basics()
    before = _buffer([(BASICS, old), _moments("gone")])
    after = _buffer([_moments("new"), (BASICS[::-1], new)])
    old += torch.arange(float(len(old)))
    kept = old.clone()
    after.adopt(before)
    starts = np.cumsum([0, *(len(new_accumulator(a.reduction, CPU)) for a in BASICS)])
    parts = [kept[a:b] for a, b in pairwise(starts)]
    assert torch.equal(new, torch.cat(parts[::-1]))


def test_a_thousand_pieces_take_microseconds_each():
    buffer = _buffer([_moments(str(i)) for i in range(1000)])
    buffer.flush()
    best = float("inf")
    for _ in range(5):
        began = time.thread_time()
        buffer.flush()
        best = min(best, time.thread_time() - began)
    assert best < 2e-3, f"{1e6 * best:.0f} us"
