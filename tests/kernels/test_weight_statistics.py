"""Sinks and concentration of attention weights, against the dense weights in float64."""

from __future__ import annotations

import math

import pytest
import torch

from stabwatch.kernels.attention_scores import weight_statistics
from stabwatch.kernels.attention_scores.naive import weight_statistics as naive


def call(heads=4, kv=2, tokens=20, keys=20, batch=3, kind=torch.float32, seed=0):
    draw = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, heads, tokens, 8, generator=draw) * 2
    return query.to(kind), torch.randn(batch, kv, keys, 8, generator=draw).to(kind)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shown", [None, "padding", "bias"])
def test_it_is_that_of_the_dense_weights(causal, kind, shown):
    query, key = call(kind=kind)
    mask = None
    if shown == "padding":
        mask = torch.ones(3, 1, 1, 20, dtype=torch.bool)
        mask[0, ..., :6] = False  # on the left: the first key that is seen is another one
        mask[1, ..., 15:] = False
    if shown == "bias":
        mask = torch.randn(4, 20, 20)
    found, truth = (f(query, key, mask, causal, None) for f in (weight_statistics, naive))
    torch.testing.assert_close(found.double(), truth, rtol=1e-4, atol=1e-5)


def test_a_sink_is_seen_and_uniform_attention_has_none():
    query, key = call(heads=2, kv=2, tokens=16, keys=16, batch=1)
    key[:, 0, 0], query[:, 0] = 6.0, 1.0  # the first head looks at the first key
    key[:, 1], query[:, 1] = 0.0, 0.0
    count, first, largest, effective, heads, sinks = weight_statistics(query, key, None, False, None).tolist()
    assert (count, heads, sinks) == (32, 2, 1)
    assert first == pytest.approx(16 * (1 + 1 / 16), rel=0.01) and largest == pytest.approx(first, rel=1e-5)
    assert effective == pytest.approx(16 * (1 + 1 / 16), rel=0.01)


def test_rows_without_a_key_and_broken_rows_are_left_out():
    query, key = call(tokens=5, keys=5, batch=1)
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[2] = False
    query[0, 1, 3] = math.nan
    found = weight_statistics(query, key, mask, False, None)
    assert found[0] == 4 * 4 - 1 and torch.isfinite(found).all()
    torch.testing.assert_close(found.double(), naive_without_nan(query, key, mask), rtol=1e-4, atol=1e-5)


def naive_without_nan(query, key, mask):
    """The head with a broken row is asked for without it."""
    whole = naive(torch.nan_to_num(query), key, mask, False, None)
    broken = naive(torch.nan_to_num(query[:, :, 3:4]), key, mask[3:4], False, None)
    one = naive(torch.nan_to_num(query[:, 1:2, 3:4]), key[:, 0:1], mask[3:4], False, None)
    assert broken[0] == 4
    return torch.cat((whole[:4] - one[:4], whole[4:]))


def test_long_sequences_and_batches_are_sampled():
    query, key = call(heads=2, kv=1, tokens=300, keys=300, batch=9)
    assert weight_statistics(query, key, None, True, None)[0] == 4 * 2 * len(range(0, 300, 300 // 64))
