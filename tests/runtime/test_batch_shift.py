"""Data that become other ones are seen at the batches; the order of shuffled ones is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from stabwatch.hooks.base.actions import batch_of
from stabwatch.hooks.base.batch_projection import numbers_of, project
from stabwatch.runtime.batch_shift import BatchShift


def _project(*inputs):
    batch = numbers_of(batch_of(inputs))
    return None if batch is None else project(batch)


def _numbers(g):
    return torch.randn(32, 20, generator=g)


def _scaled(g):
    return 3 * _numbers(g) + 1


def _noisier(g):
    return _numbers(g) + 0.7 * torch.randn(32, 20, generator=g)


def _tokens(g):
    return torch.randint(0, 50, (16, 40), generator=g)


def _other_tokens(g):
    return torch.randint(0, 90, (16, 40), generator=g)


def _pictures(g):
    return torch.randn(16, 1, 4, 4, generator=g)


def _larger_pictures(g):
    return torch.randn(16, 1, 8, 8, generator=g)


def _shifts(*parts):
    shift, g = BatchShift(), torch.Generator().manual_seed(0)
    return np.array([shift.observe(_project(draw(g))) for draw, steps in parts for _ in range(steps)])


@pytest.mark.parametrize("draw", [_numbers, _tokens, _pictures])
def test_shuffled_data_do_not_change(draw):
    found = _shifts((draw, 400))
    assert np.isnan(found[:26]).all() and np.nanmean(found[26:] > 3) < 0.01
    assert 0.7 < np.nanmean(found) < 1.4, "about 1"


@pytest.mark.parametrize(
    ("before", "after"),
    [(_numbers, _scaled), (_numbers, _noisier), (_tokens, _other_tokens), (_pictures, _larger_pictures)],
)
def test_other_data_are_seen_at_once_and_become_the_usual_ones(before, after):
    found = _shifts((before, 100), (after, 120))
    assert (found[101:140] > 3).all()
    assert np.isnan(found[160:165]).all(), "a new reference is gathered"
    assert np.nanmean(found[190:]) < 2


def test_data_that_come_back_are_like_those_before():
    found = _shifts((_tokens, 100), (_other_tokens, 12), (_tokens, 100))
    assert (found[101:112] > 3).all() and np.nanmean(found[120:]) < 2
    assert not np.isnan(found[112:]).any()


def test_the_order_in_memory_changes_nothing():
    pictures = torch.randn(8, 3, 16, 16)
    for batch in (pictures.contiguous(memory_format=torch.channels_last), pictures.mT.contiguous().mT):
        assert not batch.is_contiguous()
        np.testing.assert_array_equal(_project(batch), _project(pictures))


def test_what_is_no_batch_is_not_measured():
    assert _project() is None and _project(torch.zeros(3)) is None
    assert math.isnan(BatchShift().observe(None))
    assert math.isnan(BatchShift().observe(np.full(17, np.nan, np.float32)))
